"""The CUDA backend's Python half: engines and torch modules captured into the graphs that the C++ core replays."""
