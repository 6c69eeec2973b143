"""Voices and sounds as a telephone line hands them over: 8 kHz, mono, 16-bit, heard through mu-law.

No caller is described here (make.py does that) and no speech is recognised (tests/callers_heard.rs does that). Every random number
comes from a seed made of a name, so the same programs make the same bytes.
"""

import hashlib
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
from scipy.signal import butter, resample_poly, sosfilt

RATE = 8000
"""Hz of everything that leaves this file."""

SPEECH_DBFS = -26.0
"""RMS of the stretches of speech, relative to full scale: the nominal speech level of ITU-T P.56 and G.191 tests."""

LEAD_MS = 20
TAIL_MS = 120
"""Kept before the first onset, and after the last offset so that the room can ring out."""

SPLIT_MS = 200
"""A pause at least this long splits the speech into two stretches."""


def seeded(name):
    """A generator of random numbers that belongs to `name` alone."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")))


def db(x):
    return 10.0 ** (x / 20.0)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x)))) if len(x) else 0.0


# Voices ----------------------------------------------------------------------------------------------------------


def speak(voice, text, speed, pitch=None):
    """One phrase in a synthetic voice, as floats at 8 kHz.

    `voice` is "espeak-ng NAME" or "flite NAME". `speed` is in words a minute for espeak-ng and the factor that
    durations are multiplied by for flite; `pitch` is espeak-ng's 0..99 or flite's mean in Hz.
    """
    program, name = voice.split(" ", 1)
    if program == "espeak-ng":
        command = ["espeak-ng", "-v", name, "-s", str(speed), "--stdout"]
        if pitch is not None:
            command += ["-p", str(pitch)]
        sound = subprocess.run([*command, text], capture_output=True, check=True).stdout
        # The header of a streamed WAV states no length, so it is skipped instead of read: 44 bytes, then samples.
        rate, samples = int.from_bytes(sound[24:28], "little"), np.frombuffer(sound[44:], "<i2")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "phrase.wav"
            command = ["flite", "-voice", name, "--setf", f"duration_stretch={speed}"]
            if pitch is not None:
                command += ["--setf", f"int_f0_target_mean={pitch}"]
            subprocess.run([*command, "-t", text, "-o", str(path)], capture_output=True, check=True)
            with wave.open(str(path)) as sound:
                rate, samples = sound.getframerate(), np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    divisor = int(np.gcd(rate, RATE))
    return resample_poly(samples / 32768.0, RATE // divisor, rate // divisor)


# The line --------------------------------------------------------------------------------------------------------


BAND = butter(2, [300.0, 3400.0], "bandpass", fs=RATE, output="sos")


def telephone_band(x):
    """300 to 3400 Hz, 12 dB an octave on either side. It delays by less than 1 ms."""
    return sosfilt(BAND, x)


def room(x, rng, decay_ms=250, direct_to_room_db=14.0):
    """Adds a small room: a noise tail that starts 4 ms after the sound and falls by 60 dB in `decay_ms`."""
    count = decay_ms * RATE // 1000
    tail = rng.standard_normal(count) * db(-60.0 * np.arange(count) / count)
    tail[: 4 * RATE // 1000] = 0.0
    tail *= db(-direct_to_room_db) / np.sqrt(np.sum(np.square(tail)))
    tail[0] = 1.0
    return np.convolve(x, tail)[: len(x)]


def mulaw_round_trip(pcm):
    """G.711 mu-law, encoded and decoded by the arithmetic of ITU-T G.711 on 14-bit magnitudes; 16-bit in and out."""
    magnitude = np.minimum(np.abs(pcm.astype(np.int64)) >> 2, 8158) + 33
    segment = np.floor(np.log2(magnitude)).astype(np.int64) - 5
    step = (magnitude >> (segment + 1)) & 15
    decoded = (((2 * step + 33) << segment) - 33) << 2
    return np.where(pcm < 0, -decoded, decoded).astype(np.int16)


def to_line(x):
    """Floats to the 16-bit samples that the far end of a mu-law line decodes."""
    return mulaw_round_trip(np.clip(np.rint(x * 32768.0), -32768, 32767).astype(np.int32))


# The truth -------------------------------------------------------------------------------------------------------


def loud(x, under_peak_db):
    """For each ms: is the RMS of the 5 ms around it less than `under_peak_db` below the loudest 5 ms."""
    step, window = RATE // 1000, 5 * RATE // 1000
    energy = np.cumsum(np.concatenate([[0.0], np.square(np.pad(x, (window // 2, window)))]))
    at = np.arange(0, len(x) - len(x) % step, step)
    level = np.sqrt((energy[at + window] - energy[at]) / window)
    return level > level.max() * db(-under_peak_db)


def stretches(x, under_peak_db=38.0):
    """Onset and offset in ms of each stretch of clean speech. Pauses shorter than `SPLIT_MS` belong to the speech."""
    found = []
    for ms in np.flatnonzero(loud(x, under_peak_db)):
        if found and ms - found[-1][1] < SPLIT_MS:
            found[-1][1] = int(ms) + 1
        else:
            found.append([int(ms), int(ms) + 1])
    # A stretch under 30 ms is a click of the synthesiser, not speech.
    return [pair for pair in found if pair[1] - pair[0] >= 30]


def of_voice(x, speech):
    """The samples inside the stretches."""
    return np.concatenate([x[a * RATE // 1000 : b * RATE // 1000] for a, b in speech])


def say(phrases, voice, speed, pitch, rng, snr_db=35.0, level_dbfs=SPEECH_DBFS, with_room=True):
    """Phrases (text) and pauses (ms) as one utterance on the line: its samples and its stretches of speech in ms.

    The pause is the true one: from the offset of a phrase to the onset of the next.
    """
    parts = []
    for phrase in phrases:
        if isinstance(phrase, int):
            parts.append(np.zeros(phrase * RATE // 1000))
            continue
        x = telephone_band(np.pad(speak(voice, phrase, speed, pitch), RATE // 4))
        heard = stretches(x)
        parts.append(x[heard[0][0] * RATE // 1000 : heard[-1][1] * RATE // 1000])
    clean = np.pad(np.concatenate(parts), (LEAD_MS * RATE // 1000, TAIL_MS * RATE // 1000))
    speech = stretches(clean)
    gain = db(level_dbfs) / rms(of_voice(clean, speech))
    x = clean * gain
    if with_room:
        x = room(x, rng)
    noise = rng.standard_normal(len(x))
    noise *= db(level_dbfs - snr_db) / rms(noise)
    return to_line(x + faded(noise)), speech


def faded(x, ms=10):
    """Without a click at either end."""
    count = min(ms * RATE // 1000, len(x) // 2)
    ramp = 0.5 * (1 - np.cos(np.pi * (np.arange(count) + 0.5) / count))
    y = x.copy()
    y[:count] *= ramp
    y[len(y) - count :] *= ramp[::-1]
    return y


def write_wav(path, samples):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples.astype("<i2").tobytes())


def read_wav(path):
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, RATE), path
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
