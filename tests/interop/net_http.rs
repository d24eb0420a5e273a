//! Go's own HTTP client and larder's server.

use std::process::Command;

use crate::cluster::Program;

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn server_answers_all_kinds_of_requests_of_net_http() {
    let node = Program::Larder.start(&[]);
    let impatient = Program::Larder.start(&["--idle-timeout-ms", "1"]);
    let program = std::env::var_os("LARDER_INTEROP_GO").expect("run tests/interop/run.sh");
    let output = Command::new(program)
        .args(["client", "--url", &node.url, "--impatient", &impatient.url])
        .output()
        .expect("the client runs");
    let lines = String::from_utf8_lossy(&output.stdout);
    println!("{lines}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    assert_eq!(
        lines.lines().filter(|line| line.starts_with("ok ")).count(),
        14
    );
}
