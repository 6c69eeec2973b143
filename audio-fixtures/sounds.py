"""Sounds that are not speech, computed from nothing: rooms, music, keys, coughs, knocks. Floats at 8 kHz."""

import numpy as np

from telephone import RATE, db, faded, rms, seeded, telephone_band


def at_level(x, dbfs):
    return x * (db(dbfs) / rms(x))


def looped(seconds, shape_db, rng):
    """Noise with the spectrum `shape_db(hz)`, made in the frequency domain, so that its end meets its beginning."""
    count = int(seconds * RATE)
    hz = np.fft.rfftfreq(count, 1 / RATE)
    phase = np.exp(2j * np.pi * rng.random(len(hz)))
    return np.fft.irfft(db(shape_db(hz)) * phase, count)


def office(seconds=10):
    """Ventilation without voices: hiss as even as the band, swelling by 2 dB, over the hum of a fan."""
    hiss = looped(seconds, lambda hz: np.where((hz > 150) & (hz < 3700), 0.0, -15.0), seeded("office"))
    at = np.arange(len(hiss)) / len(hiss)
    swell = db(1.5 * np.sin(2 * np.pi * 3 * at) + 0.5 * np.sin(2 * np.pi * 7 * at + 1.0))
    # Whole periods in the loop: 240, 360 and 480 Hz.
    hum = sum(np.sin(2 * np.pi * hz * seconds * at) / hz for hz in (240, 360, 480))
    return hiss / rms(hiss) * swell + 0.2 * hum / rms(hum)


def music(seconds=12):
    """Hold music: four chords on plucked strings, three seconds each, and a slow tune above them."""
    count = seconds * RATE
    out = np.zeros(count)

    def pluck(at_s, midi, loudness, ring_s):
        hz = 440.0 * 2 ** ((midi - 69) / 12)
        t = np.arange(int(ring_s * RATE)) / RATE
        tone = sum(np.sin(2 * np.pi * hz * k * t) * np.exp(-t * (2.0 + 1.2 * k)) / k for k in (1, 2, 3, 4) if hz * k < 3600)
        attack = np.minimum(1.0, t / 0.005)
        # A note that rings past the end rings on at the beginning of the loop.
        where = (int(at_s * RATE) + np.arange(len(t))) % count
        np.add.at(out, where, loudness * tone * attack)

    chords = [(57, 60, 64), (53, 57, 60), (55, 59, 62), (52, 55, 59)]
    tune = [76, 72, 74, 71, 72, 69, 71, 67]
    for bar, chord in enumerate(chords):
        for beat in range(6):
            pluck(bar * 3 + beat * 0.5, chord[beat % 3], 0.8, 1.5)
        for half in range(2):
            pluck(bar * 3 + half * 1.5, tune[bar * 2 + half], 0.6, 2.0)
    return telephone_band(np.tile(out, 2))[count:]


def typing(seconds, rng):
    """Keys of a keyboard near the telephone: 6 to 9 a second, each a press and a softer release."""
    out = np.zeros(int(seconds * RATE))
    at = 0.02
    while at < seconds - 0.12:
        for delay, loudness in ((0.0, 1.0), (0.05 + 0.03 * rng.random(), 0.4)):
            t = np.arange(RATE // 50) / RATE
            ring = np.sin(2 * np.pi * (1400 + 1600 * rng.random()) * t) + rng.standard_normal(len(t))
            start = int((at + delay) * RATE)
            key = loudness * (0.6 + 0.4 * rng.random()) * ring * np.exp(-t / 0.003)
            out[start : start + len(t)] += key[: len(out) - start]
        at += 0.11 + 0.06 * rng.random()
    return at_level(telephone_band(out), -36.0)


def cough(rng):
    """One cough: a burst, a rush of air through a throat, and a short rough end."""
    t = np.arange(int(0.34 * RATE)) / RATE
    air = rng.standard_normal(len(t))
    throat = np.zeros(len(t))
    for hz, width, loudness in ((650, 180, 1.0), (1500, 250, 0.7), (2600, 350, 0.5)):
        # A two-pole resonance, the simplest model of a formant.
        radius, angle = np.exp(-np.pi * width / RATE), 2 * np.pi * hz / RATE
        y1 = y2 = 0.0
        for n, x in enumerate(air):
            y1, y2 = x + 2 * radius * np.cos(angle) * y1 - radius**2 * y2, y1
            throat[n] += loudness * (1 - radius) * y1
    burst = np.exp(-t / 0.02) * (t < 0.05)
    rush = np.minimum(1.0, t / 0.03) * np.exp(-np.maximum(t - 0.06, 0.0) / 0.07)
    rough = 0.35 * (t > 0.2) * np.exp(-((t - 0.25) ** 2) / 0.0008) * (1 + np.sin(2 * np.pi * 70 * t))
    return at_level(faded(telephone_band(throat * (1.5 * burst + rush + rough)), 3), -26.0)


def knock(rng):
    """A mug put on the desk: a damped low thump with a click on it."""
    t = np.arange(int(0.12 * RATE)) / RATE
    x = np.sin(2 * np.pi * (320 + 80 * rng.random()) * t) * np.exp(-t / 0.02)
    return at_level(telephone_band(x + 0.4 * rng.standard_normal(len(t)) * np.exp(-t / 0.004)), -28.0)


def breath(rng):
    """A breath on the microphone: soft noise that swells and falls in 0.45 s."""
    t = np.arange(int(0.45 * RATE)) / RATE
    return at_level(telephone_band(rng.standard_normal(len(t)) * np.sin(np.pi * t / 0.45) ** 2), -38.0)


def crackle(rng):
    """A bad contact: 100 ms of sparse impulses."""
    x = rng.standard_normal(int(0.1 * RATE)) * (rng.random(int(0.1 * RATE)) < 0.06)
    return at_level(telephone_band(x), -30.0)


def sequence(events, rng):
    """Sounds and pauses (ms) after one another; a sound is the name of a function here, or ("typing", seconds)."""
    makers = {"cough": cough, "knock": knock, "breath": breath, "crackle": crackle}
    parts = [np.zeros(RATE // 50)]
    for event in events:
        if isinstance(event, int):
            parts.append(np.zeros(event * RATE // 1000))
        elif isinstance(event, tuple):
            parts.append(typing(event[1], rng))
        else:
            parts.append(makers[event](rng))
    return np.concatenate([*parts, np.zeros(RATE // 50)])
