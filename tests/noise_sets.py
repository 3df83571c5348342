"""Small copies of published noise and room sets, laid out as they are published."""

import csv

import numpy as np
import soundfile

RATE_HZ = 16000
ESC50 = {"10": "rain", "0": "dog", "41": "chainsaw"}
CITY = {"0": "air_conditioner", "2": "children_playing", "3": "dog_bark", "9": "street_music"}
ROOMS = ["RVB2014_type1_rir_largeroom1_near_angla", "RVB2014_type1_rir_largeroom1_far_angla",
         "RVB2014_type1_rir_smallroom2_far_anglb", "RWCP_type1_rir_circle_e1a_imp000",
         "RWCP_type2_rir_cirline_ofc_imp130", "RWCP_type4_rir_p30l", "air_type1_air_binaural_lecture_0_1",
         "air_type1_air_phone_bt_office_hhp"]  # fmt: skip


def save(path, x, rate_hz=RATE_HZ):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, rate_hz)


def noise(seconds=0.6, seed=0, gain=0.1):
    return (gain * np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ))).astype(np.float32)


def response(delay=100, decay_seconds=0.05, seed=0):
    """Return a response: silence, the direct path, and a tail that decays by 60 dB."""
    t = np.arange(int(decay_seconds * RATE_HZ)) / RATE_HZ
    tail = 0.1 * np.random.default_rng(seed).standard_normal(len(t)) * 10 ** (-3 * t / decay_seconds)
    x = np.concatenate([np.zeros(delay), tail])
    x[delay] = -0.5
    return x.astype(np.float32)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def recordings(folder):
    for label in ("rain", "saw", "dog", "wind"):
        for i in range(4):
            save(folder / label / f"{i}.wav", noise(seed=i))


def musan(folder):
    for part, origin, n in (("noise", "free-sound", 6), ("noise", "sound-bible", 3), ("music", "fma", 4),
                            ("speech", "us-gov", 4)):  # fmt: skip
        for i in range(n):
            save(folder / part / origin / f"{part}-{origin}-{i:04d}.wav", noise(seed=i))
        (folder / part / origin / "LICENSE").write_text("free")


def demand(folder):
    for i, environment in enumerate(("DKITCHEN", "NFIELD", "OOFFICE", "PCAFETER", "STRAFFIC", "TMETRO")):
        for channel in range(1, 4):
            save(folder / environment / f"ch{channel:02d}.wav", noise(seed=i))


def esc50(folder):
    rows = []
    for target, category in ESC50.items():
        for fold in range(1, 6):
            for take in "AB":
                name = f"{fold}-{1000 * fold + int(target)}-{take}-{target}.wav"
                rows.append({"filename": name, "fold": fold, "target": target, "category": category})
    for row in rows:
        save(folder / "audio" / row["filename"], noise())
    table(folder / "meta" / "esc50.csv", rows)


def urbansound8k(folder):
    rows = []
    for fold in range(1, 11):
        for class_id, label in CITY.items():
            for part in range(2):  # slices of one recording, which has two classes
                name = f"{100 * fold + int(class_id) // 3}-{class_id}-0-{part}.wav"
                rows.append({"slice_file_name": name, "fold": fold, "classID": class_id, "class": label})
    for row in rows:
        save(folder / "audio" / f"fold{row['fold']}" / row["slice_file_name"], noise())
    table(folder / "metadata" / "UrbanSound8K.csv", rows)


def wham(folder):
    for k, (part, n) in enumerate((("tr", 8), ("cv", 3), ("tt", 4))):
        rows = [{"utterance_id": f"{k}{i:02d}a_0.5_{k}{i:02d}b_-0.5.wav", "File ID": f"F{k}{i // 2}",
                 "Location ID": f"L{(k + i) % 4}"} for i in range(n)]  # fmt: skip
        for row in rows:
            save(folder / "wham_noise" / part / row["utterance_id"], np.stack([noise(), noise(seed=1)], axis=1))
        table(folder / "wham_noise" / "metadata" / f"noise_meta_{part}.csv", rows)


def slr28(folder):
    folder = folder / "RIRS_NOISES"
    for i in range(6):
        save(folder / "pointsource_noises" / f"noise-free-sound-{i:04d}.wav", noise(seed=i))
    for room in ("largeroom1", "smallroom2", "mediumroom1"):
        for i in range(2):
            save(folder / "real_rirs_isotropic_noises" / f"RVB2014_type1_noise_{room}_{i}.wav", noise(seed=i))
    for i, name in enumerate(ROOMS):
        save(folder / "real_rirs_isotropic_noises" / f"{name}.wav", response(seed=i))
    for size in ("small", "medium", "large"):
        for room in range(1, 4):
            for i in range(1, 4):
                path = folder / "simulated_rirs" / f"{size}room" / f"Room{room:03d}" / f"Room{room:03d}-{i:05d}.wav"
                save(path, response(seed=i))


def rir(folder):
    for i in range(4):
        save(folder / f"room{i}.wav", response(seed=i))


SETS = {"folder": recordings, "musan": musan, "demand": demand, "esc50": esc50, "urbansound8k": urbansound8k,
        "wham": wham, "slr28": slr28}  # fmt: skip
