//! What the demo prints: numbered steps, what each proves, and the command a user would type.

use std::time::Duration;

/// Prints the head of a step.
pub(super) fn step(number: usize, title: &str, proves: &str) {
    println!("\n── {number}. {title}");
    println!("   {proves}");
}

/// Prints a command as a user would type it.
pub(super) fn command(line: &str) {
    println!("   $ {line}");
}

/// Prints output, indented.
pub(super) fn output(text: &str) {
    for line in text.lines() {
        println!("     {line}");
    }
}

/// Prints what the step found.
pub(super) fn found(text: &str) {
    println!("   ✓ {text}");
}

/// Seconds with one decimal.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
