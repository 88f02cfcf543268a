"""Episodes and datasets on disk: videos, camera trajectories, contact sheets, metadata, exports and scores.

File names and the keys of trajectory files are those of SANA-WM-Bench (camera reference, section 7.1).
"""
