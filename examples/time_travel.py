"""Step a learned world, keep a state, try two futures from it, and go back.

python examples/time_travel.py            # leaves runs/time_travel.png
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

import sanawm_env  # noqa: F401  registers SanaWM/Explore-v0


def main() -> None:
    env = gym.make("SanaWM/Explore-v0", world="nano")
    env.reset(seed=0)
    env.step(np.array([0, 0, 0.5, 0, 0, 0], np.float32))  # forward
    here = env.unwrapped.snapshot()  # a reference: nothing is copied

    rows = []
    for turn in (-1.0, 1.0):  # left, then right, from the same state
        env.unwrapped.restore(here)
        env.step(np.array([0, 0, 0, 0, turn, 0], np.float32))
        rows.append(np.concatenate(env.unwrapped.clip.frames[2::7], axis=1))
    out = Path("runs/time_travel.png")
    out.parent.mkdir(exist_ok=True)
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.LANCZOS).save(out)
    print(f"above: turned left, below: turned right, from one state: {out}")


if __name__ == "__main__":
    main()
