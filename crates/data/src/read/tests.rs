//! Tests of the readers: formats as data, error places, real files, mutations.

use super::*;
