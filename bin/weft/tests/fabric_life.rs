//! A fabric's end leaves nothing, however it comes; fabrics do not disturb each other; mistakes are said clearly.

mod support;

use std::process::Command;

use support::{Fabric, leftovers, text, weft};

#[test]
fn two_fabrics_side_by_side_and_down_leaves_nothing() {
    let first = Fabric::up("one", &["--nodes", "2"]);
    let second = Fabric::up("two", &["--nodes", "1", "--routing", "vxlan"]);
    assert_eq!(first.json(&["status"]).as_array().unwrap().len(), 2);
    let second_name = second.name.clone();
    second.down();
    assert_eq!(leftovers(&second_name), Vec::<String>::new());
    assert_eq!(first.json(&["status"]).as_array().unwrap().len(), 2);
    first.down();
}

#[test]
fn a_killed_supervisor_leaves_a_fabric_that_down_removes() {
    let mut fabric = Fabric::up("killed", &["--nodes", "2"]);
    fabric.kill_supervisor();
    assert_eq!(fabric.json(&["status"]).as_array().unwrap().len(), 2, "the fabric outlives its supervisor");
    let output = Command::new(weft()).args(["down", "--name", &fabric.name]).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(leftovers(&fabric.name), Vec::<String>::new());
}

#[test]
fn mistakes_are_named_and_the_rest_works() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
    write("a-good.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {a: b}\n");
    write("b-broken.yaml", "apiVersion: v1\nkind: [\n");
    write("c-unknown.yaml", "apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: g}\n");
    write(
        "d-wrong.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: wrong}\nspec: {ports: [{port: 99999}]}\n",
    );
    let fabric = Fabric::up("bad", &["--nodes", "1", "--apply", folder.path().to_str().unwrap()]);
    let printed = fabric.printed();
    assert!(printed.contains("b-broken.yaml, document 1: not valid YAML"), "{printed}");
    assert!(printed.contains("Gadget g: the server has no kind Gadget in example.com/v1"), "{printed}");
    assert!(printed.contains("spec.ports[0].port: Invalid value"), "{printed}");
    nobody_reads(&fabric, &["status", "--tables", "node1"]);
    let stranger = fabric.run(&["status", "--tables", "node9"]);
    let said = support::text(&stranger.stderr);
    assert!(!stranger.status.success() && said.contains("the cluster's nodes are node1"), "{said}");
    let again = fabric.run(&["apply", folder.path().to_str().unwrap()]);
    assert!(!again.status.success());
    assert!(text(&again.stdout).contains("ConfigMap good applied"), "{}", text(&again.stdout));
    fabric.down();
}

fn refused(args: &[&str]) -> String {
    let output = Command::new(weft()).args(args).output().unwrap();
    assert!(!output.status.success(), "weft {args:?} succeeded:\n{}", text(&output.stdout));
    text(&output.stderr)
}

#[test]
fn impossible_fabrics_are_refused_with_the_field_and_the_remedy() {
    let up = ["up", "--name", "refused", "--once"];
    let error = refused(&[&up[..], &["--pods-v4", "10.96.0.0/12"]].concat());
    assert!(error.contains("overlap"), "{error}");
    let error = refused(&[&up[..], &["--pods-v4", "10.244.0.0/23", "--nodes", "5"]].concat());
    assert!(error.contains("pods:"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = refused(&[&up[..], &["--api-port", &port]].concat());
    assert!(error.contains(&port), "{error}");
    let error = refused(&["status", "--name", "nobody"]);
    assert!(error.contains("no cluster named \"nobody\""), "{error}");
    assert_eq!(leftovers("refused"), Vec::<String>::new());
}

#[test]
fn without_root_it_says_so() {
    use std::os::unix::process::CommandExt;
    let exe = tempfile::tempdir().unwrap();
    let copy = exe.path().join("weft");
    std::fs::copy(weft(), &copy).unwrap();
    std::os::unix::fs::chown(exe.path(), Some(65534), Some(65534)).unwrap();
    let output =
        Command::new(&copy).args(["up", "--name", "rootless"]).uid(65534).gid(65534).output().unwrap();
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("root"), "{error}");
}

/// `weft up` where a part of the kernel's own file systems is hidden by something else.
fn on_a_machine_where(hide: &str) -> String {
    let script = format!("{hide} && exec \"$@\"");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh", weft(), "up", "--name", "lacking", "--once"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "{}", text(&output.stdout));
    assert_eq!(leftovers("lacking"), Vec::<String>::new());
    text(&output.stderr)
}

#[test]
fn a_kernel_that_lacks_something_is_told_what() {
    let error = on_a_machine_where("mount -t tmpfs none /sys/kernel/btf");
    assert!(
        error.contains("/sys/kernel/btf/vmlinux") && error.contains("CONFIG_DEBUG_INFO_BTF=y"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    let older = |file: &str, content: &str| {
        let copy = folder.path().join("hidden");
        std::fs::write(&copy, content).unwrap();
        on_a_machine_where(&format!("mount --bind {} {file}", copy.display()))
    };
    let error = older("/proc/sys/kernel/osrelease", "6.1.0-9-amd64\n");
    assert!(error.contains("6.1.0-9-amd64") && error.contains("6.6"), "{error}");
    let error = older("/proc/filesystems", "nodev\tcgroup2\n");
    assert!(error.contains("bpf") && error.contains("CONFIG_BPF_SYSCALL"), "{error}");
}

/// A verb whose reader has gone ends like any other program, and complains of nothing.
fn nobody_reads(fabric: &Fabric, args: &[&str]) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut weft = std::process::Command::new(support::weft());
    let output = weft.args(args).args(["--name", &fabric.name]).stdout(writer).output().unwrap();
    assert_eq!(support::text(&output.stderr), "", "{}", output.status);
}
