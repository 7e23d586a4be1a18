//! What a panic looks like.

/// Replaces the default report: short, without payloads that may hold values, and with the next step.
pub(super) fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
        // Only a text that stands in the program: a formatted one may hold a cell's value.
        let what = match panic.payload().downcast_ref::<&'static str>() {
            Some(text) => format!(": {text}"),
            None => String::new(),
        };
        let mut report = format!(
            "error: this is a bug in SyncTool {}{place}{what}\n  code: {}\n",
            env!("CARGO_PKG_VERSION"),
            synctool_core::error::code::BUG.id
        );
        let trace = std::backtrace::Backtrace::capture();
        match trace.status() {
            std::backtrace::BacktraceStatus::Captured => report.push_str(&format!("{trace}\n")),
            _ => report.push_str("  next: report it, with the output of the same command under RUST_BACKTRACE=1\n"),
        }
        super::live::above(&report);
    }));
}
