//! Generated, verifiable problems for the quickstart and for tests.
