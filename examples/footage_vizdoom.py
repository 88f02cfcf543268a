"""`pip install vizdoom`, and this records walks through a level of Doom: an mp4 and a TUM file of its poses for each.

    python examples/footage_vizdoom.py OUT [--walks 48] [--seconds 24.5] [--seed 0]

The level is ViZDoom's "My Way Home" with the textures of Freedoom, drawn by ViZDoom's own software renderer at 320 x
240 and 35 frames a second, without weapon, figures or status bar. What turns Doom's camera into metres:

- 32 units are taken for a metre. A player is 32 units wide and 56 tall, his eyes are at 41; the renderer draws heights
  1.2 times too tall (320 x 200 pixels were meant for a 4:3 screen). Heights are multiplied by that, so that pixels are
  square, fx = fy = 160 (90 degrees across); eyes are 1.54 m high then and rooms 5 m wide.
- Doom's x is east, y north, z up, ANGLE in degrees from east to north. The camera of a pose file looks along its z, x
  is right and y down. Nobody looks up or down: this renderer shifts its picture for that, as no turn of a camera does.
- At the start of a level the game shows one picture for some tics, which are passed over.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import vizdoom
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.transform import Rotation

from sanawm_env.recording.video import VideoWriter

TICS, METRE, TALL = 35, 32.0, 1.2  # a second; units; of heights
CELL, CLEARANCE = 8.0, 22.0  # units: of the grid that paths lie on, and between them and walls
SPEED, TURN = 0.9, 38.0  # m/s and degrees a second, at most
STEP = 11.6  # units a second that 1 of a MOVE button comes to


def new_game(seed: int, sectors: bool = False) -> vizdoom.DoomGame:
    """The level, with nothing in view but itself."""
    game, folder = vizdoom.DoomGame(), Path(vizdoom.__file__).parent
    game.set_doom_game_path(str(folder / "freedoom2.wad"))
    game.set_doom_scenario_path(str(folder / "scenarios" / "my_way_home.wad"))
    game.set_doom_map("map01")
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    for part in ("hud", "weapon", "crosshair", "decals", "particles", "effects_sprites", "messages", "screen_flashes"):
        getattr(game, f"set_render_{part}")(False)
    game.set_sectors_info_enabled(sectors)
    game.set_window_visible(False)
    moves = ("MOVE_FORWARD_BACKWARD_DELTA", "MOVE_LEFT_RIGHT_DELTA", "TURN_LEFT_RIGHT_DELTA")
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in moves])
    names = ("CAMERA_POSITION_X", "CAMERA_POSITION_Y", "CAMERA_POSITION_Z", "CAMERA_ANGLE")
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in names])
    game.set_episode_timeout(0)
    game.add_game_args("-nomonsters +movebob 0")
    game.set_doom_config_path(str(Path(tempfile.gettempdir()) / "footage_vizdoom.ini"))  # not the working folder
    game.set_seed(seed)
    game.init()
    return game


class Map:
    """Where a player can stand, as a graph of grid cells. points: (N, 2) units. inside: those that a start reaches."""

    def __init__(self, walls: np.ndarray, start: np.ndarray):
        low, high = walls.reshape(-1, 2).min(0), walls.reshape(-1, 2).max(0)
        axes = [np.arange(a, b, CELL) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        begin, along = walls[:, :2], walls[:, 2:] - walls[:, :2]
        share = ((grid[:, :, None] - begin) * along).sum(-1) / (along**2).sum(-1)
        nearest = begin + np.clip(share, 0, 1)[..., None] * along
        free = np.linalg.norm(grid[:, :, None] - nearest, axis=-1).min(-1) > CLEARANCE
        number = np.where(free, np.cumsum(free).reshape(free.shape) - 1, -1)
        edges = []
        for i, j in ((1, 0), (0, 1), (1, 1), (1, -1)):
            here = number[: len(number) - i, max(0, -j) : number.shape[1] - max(0, j)]
            there = number[i:, max(0, j) : number.shape[1] + min(0, j)]
            both = (here >= 0) & (there >= 0)
            edges.append(np.stack((here[both], there[both], np.full(both.sum(), np.hypot(i, j))), axis=-1))
        a, b, cost = np.concatenate(edges).T
        points = grid[free]
        self.graph = coo_matrix((cost, (a.astype(int), b.astype(int))), shape=(len(points),) * 2).tocsr()
        self.points = points
        self.inside = np.flatnonzero(np.isfinite(dijkstra(self.graph, directed=False, indices=self.cell(start))))

    def cell(self, place: np.ndarray) -> int:
        return int(np.linalg.norm(self.points - place, axis=1).argmin())

    def path(self, place: np.ndarray, target: int) -> np.ndarray:
        """Points (K, 2) from the cell of a place to a target."""
        before = dijkstra(self.graph, directed=False, indices=target, return_predecessors=True)[1]
        cells = [self.cell(place)]
        while cells[-1] != target:
            cells.append(before[cells[-1]])
        return self.points[cells]


def read_map(seed: int) -> Map:
    """That of the level, from the lines of its sectors that nobody passes."""
    game = new_game(seed, sectors=True)
    state = game.get_state()
    lines = [line for sector in state.sectors for line in sector.lines if line.is_blocking]
    walls = np.array([(line.x1, line.y1, line.x2, line.y2) for line in lines])
    start = np.array(state.game_variables[:2])
    game.close()
    return Map(walls, start)


def walk(game: vizdoom.DoomGame, level: Map, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """From one place of the level to others, looking about: pictures (F, 240, 320, 3) uint8, and x, y, z, angle (F, 4)
    as Doom has them."""
    game.new_episode()
    for _ in range(20):
        game.make_action([0.0, 0.0, 0.0])
    shown, cameras, path = [], [], np.zeros((0, 2))
    turn, aside, wish, pace, owed = 0.0, 0.0, 0.0, SPEED, np.zeros(2)
    while len(shown) < frames:
        state = game.get_state()
        if state is None:  # it stepped on what ends the level
            return walk(game, level, rng, frames)
        shown.append(state.screen_buffer.copy())
        cameras.append(np.array(state.game_variables))
        place, angle = cameras[-1][:2], cameras[-1][3]
        if len(path) < 4:
            path = level.path(place, int(rng.choice(level.inside)))
        if rng.random() < 1 / (1.5 * TICS):
            wish, pace = rng.normal(0, 35), SPEED * rng.uniform(0.4, 1)
        aside += (wish - aside) / TICS
        near = np.linalg.norm(path - place, axis=1) < 28
        path = path[np.flatnonzero(near).max() if near.any() else 0 :]
        way = path[0] - place
        heading = np.degrees(np.arctan2(way[1], way[0]))
        error = (angle - heading + aside + 180) % 360 - 180  # to the right is positive
        turn += 0.08 * (np.clip(1.5 * error, -TURN, TURN) - turn)
        # around a corner the feet wait for the eyes
        speed = pace * METRE * np.clip(1.5 - abs(error) / 60, 0, 1) * way / max(np.linalg.norm(way), 1e-6)
        a = np.radians(angle)
        owed += np.array([[np.cos(a), np.sin(a)], [np.sin(a), -np.cos(a)]]) @ speed / STEP
        press = np.round(owed)  # buttons take whole numbers
        owed -= press
        game.make_action([*press.tolist(), turn / TICS])
    return np.stack(shown), np.stack(cameras)


def to_tum(cameras: np.ndarray) -> np.ndarray:
    """Lines of a TUM file (F, 8): seconds, position in metres, quaternion x y z w, of the camera in Doom's world."""
    east, north, up, angle = cameras.T
    a, zero = np.radians(angle), np.zeros(len(angle))
    right, down, forward = (np.sin(a), -np.cos(a), zero), (zero, zero, zero - 1), (np.cos(a), np.sin(a), zero)
    rotation = np.stack([np.stack(axis, axis=-1) for axis in (right, down, forward)], axis=-1)
    place = np.stack((east, north, up * TALL), axis=-1) / METRE
    seconds = np.arange(len(angle))[:, None] / TICS
    return np.concatenate((seconds, place, Rotation.from_matrix(rotation).as_quat()), axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record walks through a level of Doom, with their poses.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--walks", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=24.5)
    parser.add_argument("--seed", type=int, default=0, help="of the walks; another one for those that are held out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    level, metres = read_map(args.seed), 0.0
    game = new_game(args.seed)
    for number in range(args.walks):
        rng = np.random.default_rng([args.seed, number])
        shown, cameras = walk(game, level, rng, round(args.seconds * TICS))
        with VideoWriter(args.out / f"walk_{number:03d}.mp4", fps=TICS, crf=20, keyframes=2 * TICS) as video:
            video.append(shown)
        lines = to_tum(cameras)
        np.savetxt(args.out / f"walk_{number:03d}.txt", lines, "%.6f", header="seconds x y z qx qy qz qw")
        metres += float(np.linalg.norm(np.diff(lines[:, 1:4], axis=0), axis=1).sum())
    game.close()
    print(f"{args.walks} walks of {args.seconds:g} s, {metres:.0f} m in all: {args.out}")


if __name__ == "__main__":
    main()
