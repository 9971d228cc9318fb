//! Optimisers, schedules, the training step and loop.
