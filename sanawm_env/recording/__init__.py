"""What a rollout leaves behind: a video, the camera's path, a contact sheet and a note of how it was made.

The file names and the trajectory's keys are those of SANA-WM-Bench (camera spec, section 7.1).
"""
