//! Run folders: metrics, events, checkpoints, atomic publication.
