"""Scripted cameras, planners, reinforcement learning and data collection, on top of environments and simulators."""
