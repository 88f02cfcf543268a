"""A vision-language agent walks to where a picture was taken: it gets pictures and answers with keys.

python examples/vlm_walk.py                                # a stand-in that needs no network
python examples/vlm_walk.py --url ws://127.0.0.1:8765      # elsewhere: sanawm serve --env SanaWM/ImageNav-v0
                                                           #   --action-mode keys

A real agent is any function from messages, in the form that chat interfaces take (text and data URLs), to text: replace
`stand_in` by a call of yours. An answer that names no keys is told so and asked for again, which costs no step.
"""

import argparse
import base64
import io
import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

import sanawm_env  # noqa: F401  registers the ids
from sanawm_env.camera.presets import KEY_ORDER, multi_binary

Messages = list[dict[str, Any]]
TASK = (
    "You steer a camera. The first picture is the goal, the second is what you see now. Answer with one line, KEYS: "
    "and the keys to hold for the next 1.5 seconds: w forwards, s backwards, a turn left, d turn right, j left, l "
    "right, i look up, k look down, or none. Several may be held: KEYS: wd."
)
AGAIN = "Your answer names no keys. Answer with one line such as KEYS: wd, or KEYS: none."
TRIES = 3  # of an answer


def picture(image: np.ndarray) -> dict[str, Any]:
    """A picture (h, w, 3) as a part of a message."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def keys_in(answer: str) -> str | None:
    """The keys that an answer names, None where it names none; the last line that does counts."""
    found = re.findall(rf"^\W*keys\W*:\W*(none|[{''.join(KEY_ORDER)}]+)\W*$", answer, re.IGNORECASE | re.MULTILINE)
    return None if not found else found[-1].lower().replace("none", "")


def ask(agent: Callable[[Messages], str], obs: dict[str, np.ndarray]) -> str:
    """What an agent wants to hold, after at most three answers; no keys where none of them names any."""
    content = [{"type": "text", "text": TASK}, picture(obs["goal_rgb"]), picture(obs["rgb"])]
    messages: Messages = [{"role": "user", "content": content}]
    for _ in range(TRIES):
        answer = agent(messages)
        if (keys := keys_in(answer)) is not None:
            return keys
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": AGAIN}]
    return ""


def stand_in(messages: Messages) -> str:
    """Reads the two pictures and turns to the side where the goal's brighter columns lie; chatty the first time."""
    urls = [part["image_url"]["url"] for part in messages[0]["content"] if part["type"] == "image_url"]
    if len(messages) == 1:
        return "I see two pictures."
    files = (io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls)
    goal, here = (np.asarray(Image.open(file).convert("L"), float).mean(axis=0) for file in files)
    columns = np.arange(len(goal)) - len(goal) / 2
    lean = float((columns * (goal - here)).sum())
    return f"The goal is brighter to the {'right' if lean > 0 else 'left'}.\nKEYS: {'wd' if lean > 0 else 'wa'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a server; without one, nano is loaded here")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    if options.url:
        env = gym.make("SanaWM/Remote-v0", url=options.url, max_episode_chunks=options.steps)
    else:
        env = gym.make("SanaWM/ImageNav-v0", world="nano", action_mode="keys", max_episode_chunks=options.steps)
    obs, info = env.reset(seed=0, options={"task": {"chunks": 1}})
    ended = False
    while not ended:
        keys = ask(stand_in, obs)
        obs, reward, terminated, truncated, info = env.step(multi_binary(keys))
        ended = terminated or truncated
        away = f"{info['distance']:.2f} m and {info['angle']:.0f} degrees away"
        print(f"{keys or 'none':>5}  reward {reward:+.2f}  {away}")
    print("arrived" if info["is_success"] else "not there")
    env.close()


if __name__ == "__main__":
    main()
