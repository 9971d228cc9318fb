//! Recipes as people write them, and plans as they will run.
