"""The evaluation's results for people, from the dictionary that ``results.json`` holds.

table     word error rates arranged by condition, system and SNR
terminal  the table on a terminal
plots     word error rate against SNR
page      ``report.html``

A report can be drawn again from a finished run.
"""

from rkd.report.page import write_report
from rkd.report.plots import plot_wer, plot_wer_by_noise
from rkd.report.table import mean_noisy, wer_table
from rkd.report.terminal import print_table

__all__ = ["mean_noisy", "plot_wer", "plot_wer_by_noise", "print_table", "wer_table", "write_report"]
