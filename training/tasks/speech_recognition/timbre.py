"""Speakers who do not exist, so that a recogniser hears more voices than espeak-ng has."""

from __future__ import annotations

from random import Random


def invent(chance: Random) -> str:
    """The lines of a variant of espeak-ng's voices, drawn anew: pitch, formants, tone, stress.

    What the numbers mean stands in espeak-ng's docs/voices.md; they reach as far as those of the
    variants that come with it.
    """

    def some(low: int, high: int, count: int = 1) -> str:
        return " ".join(str(chance.randint(low, high)) for _ in range(count))

    pitch = round(60 * 3.5 ** chance.random())
    lines = [f"pitch {pitch} {round(pitch * chance.uniform(1.1, 1.8))}"]
    # Of the whole vocal tract; the first formants decide which vowel it is, so they go together.
    size = 100 * chance.uniform(0.75, 1.3)
    apart = (0.15, 0.1, 0.1, 0.1, 0.3, 0.3, 0.5, 0.5, 0.5)
    for formant, spread in enumerate(apart):
        frequency = round(size * chance.uniform(1.0 - spread, 1.0 + spread))
        lines.append(f"formant {formant} {frequency} {some(40, 120)} {some(60, 170)}")
    tone = " ".join(f"{hz} {some(20, 255)}" for hz in (100, 600, 1500, 3000))
    for setting, probability in (
        (f"flutter {some(0, 10)}", 0.7),
        (f"roughness {some(0, 5)}", 0.7),
        (f"voicing {some(30, 180)}", 0.5),
        (f"consonants {some(50, 130, 2)}", 0.6),
        (f"intonation {some(1, 4)}", 0.3),
        (f"stressAdd {some(-20, 60, 8)}", 0.3),
        (f"stressAmp {some(12, 30, 8)}", 0.4),
        (f"echo {some(20, 200)} {some(5, 40)}", 0.15),
        (f"breath 0 {some(0, 5, 7)}", 0.2),
        (f"klatt {some(1, 6)}", 0.15),
        (f"tone {tone}", 0.3),
    ):
        if chance.random() < probability:
            lines.append(setting)
    return "\n".join(lines) + "\n"
