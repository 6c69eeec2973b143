"""How well the demo model hears the callers: `python measure.py [NAME...]` (README.md says what it needs).

Each turn is cut as a live call cuts it, 150 to 300 ms before the true onset and 80 to 500 ms after the true offset, and
once taken as the whole file; the background of its call lies under it. Decoding is that of the live engine: greedy, short
`audio_ctx`, no timestamps, no context, at least 1.05 s. Exits 1 above 10 % of wrong words or with a wrong slot word.
"""

import math
import sys
import tomllib
from pathlib import Path

import numpy as np
from pywhispercpp.model import Model
from scipy.signal import resample_poly

from make import words
from telephone import RATE, read_wav

HERE = Path(__file__).parent
MODEL = HERE.parent / "models" / "offhook-demo-en" / "ggml-offhook-demo-en.bin"
BOUND = 0.10

CUTS = [(300, 80), (200, 300), (250, 150), (300, 300), (200, 80), (150, 500)]
"""Silence kept before the onset and after the offset, ms."""


def hear(model, x):
    """Words the model finds in 16-bit samples at 8 kHz."""
    y = resample_poly(x / 32768.0, 2, 1).astype(np.float32)
    y = np.pad(y, (0, max(0, int(1.05 * 16000) - len(y))))
    context = max(256, math.ceil((50 * len(y) / 16000 + 96) / 64) * 64)
    parts = model.transcribe(
        np.ascontiguousarray(y),
        audio_ctx=context,
        no_timestamps=True,
        single_segment=True,
        no_context=True,
        temperature_inc=0.0,
        language="en",
        print_progress=False,
        print_realtime=False,
        greedy={"best_of": 1},
    )
    return words(" ".join(part.text for part in parts))


def variants(pcm, speech, background, seed):
    """The utterance as each cut hands it over, background and all."""
    onset, offset = speech[0][0], speech[-1][1]
    margin = 1000
    wide = np.pad(pcm.astype(float), margin * RATE // 1000)
    pieces = [wide[(onset + margin - a) * RATE // 1000 : (offset + margin + b) * RATE // 1000] for a, b in CUTS]
    for at, piece in enumerate([*pieces, pcm.astype(float)]):
        if background is not None:
            start = (seed * 7919 + at * 104729) % len(background)
            piece = piece + np.resize(np.roll(background, -start), len(piece))
        yield piece


def wrong_words(said, heard):
    """Edit distance in words."""
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        old, row[0] = row[:], i
        for j, b in enumerate(heard, 1):
            row[j] = min(old[j] + 1, row[j - 1] + 1, old[j - 1] + (a != b))
    return row[-1]


def main(names):
    model = Model(str(MODEL), redirect_whispercpp_logs_to=None, n_threads=1)
    total_said = total_wrong = slot_faults = 0
    for file in sorted(HERE.glob("*/call.toml")):
        call = tomllib.loads(file.read_text())
        if names and call["name"] not in names:
            continue
        background = read_wav(file.parent / call["background"]).astype(float) if "background" in call else None
        slots = set(words(" ".join(call["expect"].get("slots", {}).values())))
        said_here = wrong_here = 0
        for index, turn in enumerate(call.get("turn", [])):
            if turn["kind"] == "noise":
                continue
            said, pcm = turn["text"].split(), read_wav(file.parent / turn["file"])
            # A word of agreement is judged by itself: the pause after it is longer than any wait of the live loop.
            one_by_one = turn["kind"] == "backchannel" and len(said) == len(turn["speech"])
            jobs = [([w], [s]) for w, s in zip(said, turn["speech"])] if one_by_one else [(said, turn["speech"])]
            for text, speech in jobs:
                pieces = list(variants(pcm, speech, background, index))
                for at, piece in enumerate(pieces[:-1] if one_by_one else pieces):
                    heard = hear(model, piece)
                    wrong = wrong_words(text, heard)
                    if wrong:
                        print(f"  {call['name']}/{turn['file']} {turn['kind']} cut {at}: {' '.join(text)} -> {' '.join(heard)}")
                    if turn["kind"] != "backchannel":
                        said_here, wrong_here = said_here + len(text), wrong_here + wrong
                        slot_faults += sum(w in slots and w not in heard for w in text)
        total_said, total_wrong = total_said + said_here, total_wrong + wrong_here
        if said_here:
            print(f"{call['name']}: {wrong_here} of {said_here} words wrong, {100 * wrong_here / said_here:.1f} %", flush=True)
    if total_said:
        print(f"all: {total_wrong} of {total_said} words wrong, {100 * total_wrong / total_said:.2f} %; slot words wrong: {slot_faults}")
    sys.exit(slot_faults > 0 or total_wrong > BOUND * total_said)


if __name__ == "__main__":
    main(sys.argv[1:])
