"""Where a start image was taken: the name of a known place and the camera's pose in it.

The nano world remembers places (nano.md, section 4). An anchor tells it which place a start image shows, and from
where. An image without an anchor starts at the identity of no particular place.
"""

import json
from dataclasses import dataclass

import numpy as np

from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.system.files import brief, explaining, parse_json


@dataclass(frozen=True, eq=False)
class Anchor:
    """Pose of frame 0 in a known place.

    Attributes:
        place: name of the place.
        c2w: (4, 4) float64, camera-to-world in the axes of the place (OpenCV: x right, y down, z forward; metres); kept
            as a read-only copy.

    Raises:
        ValueError: for an empty name, or a matrix that is not a rigid transform.
    """

    place: str
    c2w: np.ndarray

    def __post_init__(self):
        if not isinstance(self.place, str) or not self.place:
            raise ValueError(f"the place of an anchor must be a non-empty string, got {brief(self.place)}")
        with explaining("the pose of an anchor must be a rigid (4, 4) camera-to-world matrix", (TypeError, ValueError)):
            c2w = check_trajectory(np.asarray(self.c2w)[None])[0]  # a float64 copy
        c2w.setflags(write=False)
        object.__setattr__(self, "c2w", c2w)

    def to_json(self) -> str:
        """One line of JSON. `from_json` returns the same numbers, bit for bit."""
        return json.dumps({"place": self.place, "c2w": self.c2w.tolist()})

    @classmethod
    def from_json(cls, text: str) -> "Anchor":
        """Read what `to_json` wrote.

        Raises:
            ValueError: for anything else.
        """
        said = 'not an anchor (expected JSON {"place": name, "c2w": 4x4 matrix})'
        with explaining(said, (ValueError, TypeError, KeyError)):
            fields = parse_json(text)
            return cls(place=fields["place"], c2w=fields["c2w"])
