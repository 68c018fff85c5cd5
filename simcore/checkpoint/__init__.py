"""What is in a checkpoint, who writes and who reads it: functions that the simulator and `real` share (ByteCheckpoint, NSDI'25)."""
