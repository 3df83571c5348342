"""Published speech corpora in small, as their archives unpack."""

from recordings import save


def librispeech(root, parts=("train-clean-100", "dev-clean", "test-other"), text=True):
    for p, part in enumerate(parts):
        for speaker in (10 * p + 1, 10 * p + 2):
            chapter = root / part / str(speaker) / "7"
            ids = [f"{speaker}-7-{n:04d}" for n in range(3)]
            for id in ids:
                save(chapter / f"{id}.flac", seconds=0.2)
            if text:
                (chapter / f"{speaker}-7.trans.txt").write_text("".join(f"{id} HELLO WORLD {id[-1]}\n" for id in ids))
    return root


def common_voice(root):
    rows = {"train": ["a", "b"], "dev": ["c"], "test": ["d"], "validated": ["a", "b", "c", "d", "e"]}
    for name, clips in rows.items():
        lines = ["client_id\tpath\tsentence\tlocale"]
        lines += [f'speaker-{c}\tcommon_voice_{c}.mp3\t"Quoted, {c}\ttr' for c in clips]
        (root / f"{name}.tsv").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    for c in "abce":
        save(root / "clips" / f"common_voice_{c}.mp3", seconds=0.3)
    return root


def voicebank(root):
    for folder, speakers in (("trainset_28spk", ("p225", "p226", "p287")), ("testset", ("p232",))):
        for speaker in speakers:
            save(root / f"clean_{folder}_wav" / f"{speaker}_001.wav", seconds=0.2, rate_hz=48000)
            (root / f"{folder}_txt").mkdir(exist_ok=True)
            (root / f"{folder}_txt" / f"{speaker}_001.txt").write_text("Please call Stella.\n")
    return root


def ljspeech(root, n=30):
    for i in range(n):
        save(root / "wavs" / f"LJ001-{i:04d}.wav", seconds=0.2, rate_hz=22050)
    lines = [f'LJ001-{i:04d}|Dr. "Who" {i}|Doctor Who' for i in range(n)]
    (root / "metadata.csv").write_text("\n".join([*lines, "LJ001-9999|lost|lost"]) + "\n", encoding="utf-8")
    return root


def fsdd(folder, speakers=("ann", "bob", "cat"), n=12):
    for s, speaker in enumerate(speakers):
        for digit in range(10):
            for index in range(n):
                # The frequency is the recording's mark.
                hz = 200 + 1.5 * ((s * 10 + digit) * n + index)
                save(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", seconds=0.12, rate_hz=8000, hz=hz)


def hub(root):
    """A data set of six recordings a split, as save_to_disk and as Parquet."""
    import datasets

    parts = {}
    for name in ("train", "validation", "test"):
        paths = [root / "audio" / f"{name}-{n}.flac" for n in range(6)]
        for n, path in enumerate(paths):
            save(path, seconds=0.3, hz=300 + 50 * n)
        rows = {"audio": [{"bytes": path.read_bytes(), "path": path.name} for path in paths]}
        rows |= {"sentence": [f"Word {n}" for n in range(6)], "speaker_id": [n % 3 for n in range(6)]}
        # As bytes first: the library itself would encode with torchcodec.
        parts[name] = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
        parts[name].to_parquet(root / "parquet" / f"{name}-00000-of-00001.parquet")
    datasets.DatasetDict(parts).save_to_disk(root / "disk")
    parts["train"].save_to_disk(root / "single")
    return root
