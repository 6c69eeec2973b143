"""Makes every recorded caller of this folder: `python make.py [NAME...]` (README.md says what it needs).

The table below is the whole of it: who calls, in which voice, what is said when, and what the call must lead to.
"""

import re
import sys
from pathlib import Path

import numpy as np

import sounds
from telephone import SPEECH_DBFS, db, rms, say, seeded, stretches, to_line, write_wav

HERE = Path(__file__).parent


def turn(text, start, kind="turn", speed=None, voice=None):
    """What is said: a string, or a list of phrases and pauses in ms. `start` is `after_agent` or `into_agent`, ms."""
    return {"say": [text] if isinstance(text, str) else text, "start": start, "kind": kind, "speed": speed, "voice": voice}


def noise(events, start):
    return {"events": events, "start": start, "kind": "noise"}


def after(ms=700):
    return ("after_agent_ms", ms)


def into(ms):
    return ("into_agent_ms", ms)


CALLS = {
    "booking": {
        "title": "Asks the opening hours, interrupts to book a table, asks to be called back, says goodbye",
        "voice": "espeak-ng en-gb+f2",
        "turns": [
            turn("What time do you open on Friday", after()),
            turn("I would like to book a table on Friday at seven", into(2000), "interruption"),
            turn("For four people please", after()),
            turn("My name is Maria", after()),
            turn("Yes, that is right", after()),
            turn("Please call me back tomorrow", after()),
            turn("Thanks, goodbye", after()),
        ],
        "expect": {
            "slots": {"people": "four", "day": "friday", "time": "seven", "name": "maria"},
            "remember": ["booking", "callback"],
            "agent_says": ["eight", "friday", "seven", "maria", "tomorrow", "goodbye"],
        },
    },
}

SPEED = {"espeak-ng": 160, "flite": 1.0}


def words(text):
    """As transcripts are compared: lower-case words without punctuation."""
    return re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split()


def make_turn(call, name, index, one):
    """The samples of one file, its stretches of speech and the words said."""
    rng = seeded(f"{name}/{index}")
    if one["kind"] == "noise":
        return to_line(sounds.sequence(one["events"], rng)), [], ""
    voice = one["voice"] or call["voice"]
    speed = one["speed"] or call.get("speed") or SPEED[voice.split()[0]]
    samples, speech = say(one["say"], voice, speed, call.get("pitch"), rng, call.get("snr_db", 35.0))
    return samples, speech, " ".join(words(" ".join(p for p in one["say"] if isinstance(p, str))))


def make_background(kind, under_speech_db):
    x = {"office": sounds.office, "music": sounds.music}[kind]()
    return to_line(x * db(SPEECH_DBFS - under_speech_db) / rms(x))


def quoted(value):
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(quoted(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {quoted(v)}" for k, v in value.items()) + " }"
    return str(value)


def make(name, call):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    top = {
        "name": name,
        "title": call["title"],
        "language": "en",
        "workflow": "front-desk",
        "voice": call["voice"],
    }
    if "background" in call:
        top["background"] = "background.wav"
        write_wav(folder / "background.wav", make_background(*call["background"]))
    if "echo" in call:
        top["echo"] = {"gain_db": call["echo"][0], "delay_ms": call["echo"][1]}
    lines = [f"# Made by make.py: edit that, not this.\n"]
    lines += [f"{k} = {quoted(v)}\n" for k, v in top.items()]
    for index, one in enumerate(call["turns"], 1):
        samples, speech, text = make_turn(call, name, index, one)
        file = f"{index:02}.wav"
        write_wav(folder / file, samples)
        kind, ms = one["start"]
        fields = {"file": file, "text": text, "start": {kind: ms}, "speech": speech, "kind": one["kind"]}
        lines += ["\n[[turn]]\n", *(f"{k} = {quoted(v)}\n" for k, v in fields.items())]
    lines += ["\n[expect]\n", *(f"{k} = {quoted(v)}\n" for k, v in ({"slots": {}, "remember": [], "agent_says": [], "ended_by": "agent"} | call["expect"]).items())]
    (folder / "call.toml").write_text("".join(lines))


def main(names):
    unknown = [n for n in names if n not in CALLS]
    if unknown:
        sys.exit(f"no such call: {', '.join(unknown)}")
    for name in names or CALLS:
        make(name, CALLS[name])
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
