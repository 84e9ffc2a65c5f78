//! Promises that can be broken on purpose, one at a time, to see that a test notices: `.ci/canaries`.

/// Whether the promise of this name is broken: never, but where `--cfg canaries` was given and
/// `DURALOG_CANARY` has the name.
#[cfg(not(canaries))]
macro_rules! canary {
    ($name:literal) => {
        false
    };
}

#[cfg(canaries)]
macro_rules! canary {
    ($name:literal) => {{
        static BROKEN: std::sync::LazyLock<bool> =
            std::sync::LazyLock::new(|| std::env::var("DURALOG_CANARY").as_deref() == Ok($name));
        *BROKEN
    }};
}
