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
            turn("Can I book a table on Friday at seven", into(2000), "interruption", speed=150),
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
    "opening-hours": {
        "title": "Asks when it opens and closes, says thank you",
        "voice": "espeak-ng en-us+m7",
        "turns": [
            turn("Are you open on Sunday", after(), speed=140),
            turn("What time do you close", after(600)),
            turn("Okay, thank you", after(800)),
            turn("No, that is all thank you", after()),
        ],
        "expect": {"agent_says": ["midnight", "eleven", "goodbye"]},
    },
    "callback": {
        "title": "Asks to be called back on Monday and leaves a name",
        "voice": "espeak-ng en-gb-x-rp+m7",
        "turns": [
            turn("Could you call me back on Monday", after()),
            turn("My name is Peter", after()),
            turn("Thanks, goodbye", after()),
        ],
        "expect": {
            "slots": {"moment": "monday", "name": "peter"},
            "remember": ["callback"],
            "agent_says": ["peter", "monday", "goodbye"],
        },
    },
    "cancel": {
        "title": "Cancels a reservation on Friday",
        "voice": "espeak-ng en-029+f4",
        "turns": [
            turn("I need to cancel my reservation", after()),
            turn("My name is Sarah Clark", after()),
            turn("On Friday", after()),
            turn("Thanks, bye", after()),
        ],
        "expect": {
            "slots": {"name": "sarah clark", "day": "friday"},
            "remember": ["cancel"],
            "agent_says": ["sarah", "friday", "cancelled", "goodbye"],
        },
    },
    "two-breaths": {
        "title": "Books with everything in two breaths: day and time, then people and name",
        "voice": "espeak-ng en-us+m1",
        "turns": [
            turn("I would like to book a table on Friday at seven", after()),
            turn("Yes, a table for six, my name is Daniel", after(600)),
            turn("Yes, that is right thank you", after()),
            turn("Thanks, goodbye", after()),
        ],
        "expect": {
            "slots": {"people": "six", "day": "friday", "time": "seven", "name": "daniel"},
            "remember": ["booking"],
            "agent_says": ["six", "friday", "seven", "daniel", "booked", "goodbye"],
        },
    },
    "slow-speaker": {
        "title": "Thinks in the middle of sentences: pauses of 500 and 700 ms that end no turn",
        "voice": "espeak-ng en-us+m7",
        "speed": 150,
        "turns": [
            turn(["How do I get to", 500, "Garden Street from the station"], after(1000), speed=160),
            turn(["I would like to", 700, "book a table on Friday at seven"], after(1000), speed=140),
            turn("Yes, for four people", after(1200)),
            turn("My name is Maria", after(1200)),
            turn("Yes, that is right", after(1000)),
            turn("No, that is all thank you", after(1200)),
        ],
        "expect": {
            "slots": {"people": "four", "day": "friday", "time": "seven", "name": "maria"},
            "remember": ["booking"],
            "agent_says": ["garden", "friday", "seven", "maria", "booked", "goodbye"],
        },
    },
    "flite-slt": {
        "title": "Books a table in flite's voice slt",
        "voice": "flite slt",
        "turns": [
            turn("I would like to book a table on Friday at seven", after()),
            turn("Yes, for four people", after()),
            turn("My name is Thomas", after()),
            turn("Yes please", after()),
            turn("No, that is all thank you", after(), speed=1.2),
        ],
        "expect": {
            "slots": {"people": "four", "day": "friday", "time": "seven", "name": "thomas"},
            "remember": ["booking"],
            "agent_says": ["friday", "seven", "thomas", "booked", "goodbye"],
        },
    },
    "flite-awb": {
        "title": "Asks about prices, books a table in flite's voice awb, a Scottish speaker",
        "voice": "flite awb",
        "turns": [
            turn("Can you tell me about prices", after()),
            turn("I would like to book a table on Friday at seven", after()),
            turn("Yes, for seven people", after()),
            turn("My name is Peter", after(), speed=1.1),
            turn("Yes, that is right thank you", after()),
            turn("No, that is all thank you", after(), speed=1.2),
        ],
        "expect": {
            "slots": {"people": "seven", "day": "friday", "time": "seven", "name": "peter"},
            "remember": ["booking"],
            "agent_says": ["euros", "friday", "seven", "peter", "booked", "goodbye"],
        },
    },
    "accent-scotland": {
        "title": "Asks the way, then books, in a Scottish accent",
        "voice": "espeak-ng en-gb-scotland",
        "turns": [
            turn("How do I get to Garden Street from the station", after()),
            turn("I would like to book a table on Friday at seven", after()),
            turn("Yes, for four people", after()),
            turn("My name is Laura", after()),
            turn("Yes, that is right", after()),
            turn("Thanks, goodbye", after()),
        ],
        "expect": {
            "slots": {"people": "four", "day": "friday", "time": "seven", "name": "laura"},
            "remember": ["booking"],
            "agent_says": ["garden", "friday", "seven", "laura", "booked", "goodbye"],
        },
    },
    "accent-lancashire": {
        "title": "Asks about parking and cash, asks to be called back, in a northern English accent",
        "voice": "espeak-ng en-gb-x-gbclan+m1",
        "turns": [
            turn("Is there parking", after()),
            turn("Do you take cash", after()),
            turn("Please call me back tomorrow", after()),
            turn("My name is Daniel", after()),
            turn("Thanks, goodbye", after()),
        ],
        "expect": {
            "slots": {"moment": "tomorrow", "name": "daniel"},
            "remember": ["callback"],
            "agent_says": ["parking", "cash", "daniel", "tomorrow", "goodbye"],
        },
    },
    "noisy-office": {
        "title": "Books a table from an office with ventilation noise 25 dB under the voice",
        "voice": "espeak-ng en-us+f2",
        "speed": 155,
        "background": ("office", 25.0),
        "turns": [
            turn("What time do you open on Friday", after()),
            turn("I would like to book a table on Friday at seven", after()),
            turn("Yes, for four people", after()),
            turn("My name is Laura", after()),
            turn("Yes, that is right", after()),
            turn("No, that is all thank you", after()),
        ],
        "expect": {
            "slots": {"people": "four", "day": "friday", "time": "seven", "name": "laura"},
            "remember": ["booking"],
            "agent_says": ["eight", "friday", "seven", "laura", "booked", "goodbye"],
        },
    },
    "hold-music": {
        "title": "Asks about prices and the way while music plays 20 dB under the voice",
        "voice": "espeak-ng en-gb",
        "background": ("music", 20.0),
        "turns": [
            turn("Can you tell me about prices", after()),
            turn("How do I get to Garden Street from the station", after()),
            turn("Are you open on Sunday", after(), speed=155),
            turn("No, that is all thank you", after(), speed=155),
        ],
        "expect": {"agent_says": ["euros", "garden", "midnight", "goodbye"]},
    },
    "keyboard-coughs": {
        "title": "Types, coughs and breathes while the agent speaks; none of it is a turn",
        "voice": "espeak-ng en-us+m5",
        "turns": [
            turn("Can you tell me about prices", after()),
            noise([("typing", 1.6), 900, "cough"], into(900)),
            turn("Are you open on Sunday", after(900), speed=140),
            noise(["cough", 250, "cough", 900, ("typing", 1.0)], into(900)),
            turn("How do I get to Garden Street from the station", after(900)),
            noise(["breath", 500, ("typing", 0.8)], into(700)),
            turn("No, that is all thank you", after(900)),
        ],
        "expect": {"agent_says": ["euros", "midnight", "station", "goodbye"]},
    },
    "backchannel": {
        "title": "Says yes and okay while the agent speaks, and wants it to go on",
        "voice": "espeak-ng en-us+f3",
        "turns": [
            turn("Can you tell me about prices", after()),
            turn(["Okay", 1500, "yes"], into(1200), "backchannel"),
            turn("What time do you open on Friday", after(900)),
            turn("Yes", into(1500), "backchannel"),
            turn("How do I get to Garden Street from the station", after(900)),
            turn("Okay", into(1200), "backchannel"),
            turn("No, that is all thank you", after(900)),
        ],
        "expect": {"agent_says": ["euros", "midnight", "station", "goodbye"]},
    },
    "echo-100": {
        "title": "A line that returns the agent's voice 100 ms late at -25 dB",
        "voice": "espeak-ng en-us+Andy",
        "echo": (-25.0, 100),
        "turns": [
            turn("Can you tell me about prices", after(), speed=150),
            turn("Are you open on Sunday", after(), speed=140),
            turn("How do I get to Garden Street from the station", into(1500), "interruption"),
            turn("I need to cancel my booking", after()),
            turn("My name is Laura", after()),
            turn("On Friday at seven", after(), speed=150),
            turn("No, that is all thank you", after()),
        ],
        "expect": {
            "slots": {"name": "laura", "day": "friday"},
            "remember": ["cancel"],
            "agent_says": ["euros", "garden", "laura", "friday", "cancelled", "goodbye"],
        },
    },
    "echo-250": {
        "title": "A line that returns the agent's voice 250 ms late at -25 dB",
        "voice": "espeak-ng en-gb-x-gbcwmd+m3",
        "echo": (-25.0, 250),
        "turns": [
            turn("Can you tell me about prices", after()),
            turn("What time do you open on Sunday", into(1500), "interruption", speed=150),
            turn("Please call me back tomorrow", after()),
            turn("My name is Daniel", after()),
            turn("No, that is all thank you", after()),
        ],
        "expect": {
            "slots": {"moment": "tomorrow", "name": "daniel"},
            "remember": ["callback"],
            "agent_says": ["midnight", "tomorrow", "daniel", "goodbye"],
        },
    },
    "interrupter": {
        "title": "Interrupts four answers one after another",
        "voice": "espeak-ng en-us+m4",
        "turns": [
            turn("Can you tell me about prices", after()),
            turn("Can you tell me about the menu", into(1500), "interruption"),
            turn("What time do you open on Friday", into(1800), "interruption"),
            turn("How do I get to Garden Street from the station", into(2200), "interruption"),
            turn("Are you open on Sunday", into(1400), "interruption"),
            turn("No, that is all thank you", after(), speed=140),
        ],
        "expect": {"agent_says": ["lunch", "soup", "eight", "garden", "midnight", "goodbye"]},
    },
    "false-alarm": {
        "title": "Knocks and crackles while the agent speaks; it must go on where it stopped",
        "voice": "espeak-ng en-us+f5",
        "turns": [
            turn("Can you tell me about prices", after()),
            noise(["knock", 800, "crackle", 700, "knock"], into(1000)),
            turn("Are you open on Sunday", after(900)),
            noise(["crackle", 600, "knock", 120, "knock", 900, "breath"], into(800)),
            turn("No, that is all thank you", after(900)),
        ],
        "expect": {"agent_says": ["euros", "midnight", "goodbye"]},
    },
    "silent": {
        "title": "Says nothing: the agent asks whether anybody is there, and says goodbye",
        "voice": "none",
        "turns": [],
        "expect": {"agent_says": ["goodbye"]},
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
