"""Banks of noise and of rooms: found, split, and written to one Arrow file each.

layouts      how published sets lie on disk
splits       who goes where; training, validation and test share no recording and no room
noise        recorded noise
rooms        room impulse responses
simulation   rooms that nobody has to measure
"""

from rkd.data.banks.noise import NoiseClip, Recordings, load_noise, prepare_noise, trim_silence
from rkd.data.banks.rooms import Room, align_room, find_rooms, load_rooms, prepare_rooms, prepare_simulated_rooms

__all__ = [
    "NoiseClip",
    "Recordings",
    "Room",
    "align_room",
    "find_rooms",
    "load_noise",
    "load_rooms",
    "prepare_noise",
    "prepare_rooms",
    "prepare_simulated_rooms",
    "trim_silence",
]
