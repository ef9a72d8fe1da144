//! Processes that are killed and machines that lose power.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    process::{Child, Command, Stdio},
};

use rand::RngExt;

use super::*;

const CHILD: &str = "MESH_STORE_CHILD";
/// Set: the child compacts all the time.
const COMPACTS: &str = "MESH_STORE_CHILD_COMPACTS";
/// Entries.
const LARGEST_COMMIT: u64 = 5;

/// How often it is tried: `MESH_STORE_ROUNDS` for a long run, `few` otherwise.
fn rounds(few: usize) -> usize {
    let told = std::env::var("MESH_STORE_ROUNDS").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(few)
}

/// What the entry with `index` writes: often small, sometimes so large that it stays in the log.
fn value(index: u64) -> Vec<u8> {
    vec![index as u8; (index * 7919 % 40_000) as usize]
}

/// Not a test by itself: the process that the others kill. It prints the index of every acknowledged entry.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let store = Arc::new(open(Path::new(&dir)));
    // Small ones, so that many are begun and closed.
    store.shared.log.lock().roll_at(400_000);
    println!("\nopen");
    if std::env::var_os(COMPACTS).is_some() {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            loop {
                let keep_from = store.head().index;
                store
                    .compact(keep_from, Pace::Prompt, &AtomicBool::new(false))
                    .unwrap();
            }
        });
    }
    loop {
        let start = store.head();
        let mut head = start;
        let entries: Vec<_> = (0..1 + start.index % LARGEST_COMMIT)
            .map(|_| {
                let index = head.index + 1;
                let entry = entry_after(
                    &head,
                    &[Do::Put(index, value(index)), Do::Put(0, value(index))],
                );
                head = head_of(&entry);
                entry
            })
            .collect();
        store.commit(&start, entries.clone()).unwrap();
        for entry in &entries {
            // The parent is gone when this fails.
            writeln!(io::stdout(), "{}", entry.index).unwrap();
        }
    }
}

/// A child that writes to a store, killed at the end whatever happens.
struct Writer {
    process: Child,
    lines: BufReader<std::process::ChildStdout>,
    acknowledged: u64,
}

impl Writer {
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    fn start_with(dir: &Path, set: &[&str]) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .envs(set.iter().map(|name| (name, "1")))
            .args([
                "--exact",
                "store::local::tests::crash::child",
                "--nocapture",
            ])
            .env(CHILD, dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        let mut writer = Self {
            process,
            lines,
            acknowledged: 0,
        };
        while writer.line().expect("the child opens the store") != "open" {}
        writer
    }

    /// The next whole line.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.strip_suffix('\n').map(str::to_owned)
    }

    fn acknowledge(&mut self) -> bool {
        let Some(index) = self.line().and_then(|line| line.parse().ok()) else {
            return false;
        };
        self.acknowledged = index;
        true
    }

    /// Kills it, and returns the last entry it had acknowledged.
    fn kill(mut self) -> u64 {
        self.process.kill().unwrap();
        while self.acknowledge() {}
        self.acknowledged
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Every entry up to `acknowledged` is there and says what was written, in the log and in the fold.
fn check_after(dir: &Path, acknowledged: u64) -> u64 {
    let store = open(dir);
    let head = store.head().index;
    assert!(
        head >= acknowledged,
        "acknowledged {acknowledged}, but the head is {head}"
    );
    let mut last = 0;
    store
        .log(1, &mut |entry| {
            last += 1;
            assert_eq!(entry.index, last);
            assert!(entry.commitments_hold());
            assert_eq!(entry.ops[0].name_and_value().unwrap().1, value(last));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(last, head);
    for index in 1..=head {
        let record = store.get(&key(index)).unwrap().expect("folded");
        assert!(
            record.modified == index && record.value == value(index),
            "entry {index}"
        );
    }
    if head > 0 {
        assert_eq!(store.get(&key(0)).unwrap().unwrap().modified, head);
        assert_eq!(contents(&store).len() as u64, head + 1);
    }
    drop(store);
    assert_eq!(verified(dir).unwrap(), head);
    head
}

#[test]
fn killed_again_and_again_it_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    let mut head = 0;
    for _ in 0..rounds(20) {
        let mut writer = Writer::start(&dir);
        for _ in 0..rand::rng().random_range(0..400) {
            assert!(writer.acknowledge(), "the child goes on until it is killed");
        }
        let acknowledged = writer.kill();
        head = check_after(&dir, acknowledged.max(head));
    }
    let names = dir
        .read_dir()
        .unwrap()
        .map(|item| item.unwrap().file_name());
    assert_eq!(names.count(), 3, "no fold was set aside");
}

#[test]
fn killed_in_the_middle_of_a_compaction_it_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    let mut head = 0;
    for _ in 0..rounds(8) {
        let mut writer = Writer::start_with(&dir, &[COMPACTS]);
        for _ in 0..rand::rng().random_range(0..300) {
            assert!(writer.acknowledge(), "the child goes on until it is killed");
        }
        let acknowledged = writer.kill();
        head = check_after(&dir, acknowledged.max(head));
    }
    // What the last one left half done does not stay, and is done now.
    let store = open(&dir);
    let stop = AtomicBool::new(false);
    store.compact(head, Pace::Prompt, &stop).unwrap();
    drop(store);
    check_after(&dir, head);
    let names = dir.join("log").read_dir().unwrap();
    let names: Vec<_> = names.map(|item| item.unwrap().file_name()).collect();
    let left_over = |name: &&std::ffi::OsString| name.to_string_lossy().contains("tmp");
    assert_eq!(names.iter().find(left_over), None, "{names:?}");
}

/// A mounted file system, unmounted at the end whatever happens.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: &Path, arguments: &[&str]) -> Result<Self, String> {
        run(Command::new("mount").args(arguments).arg(at))?;
        Ok(Self(at.to_path_buf()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.0)) {
            eprintln!("{error}; it is unmounted when it is no longer busy");
            let _ = run(Command::new("umount").arg("-l").arg(&self.0));
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let error = || {
        format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    };
    output.status.success().then_some(()).ok_or_else(error)
}

/// Whether this may mount; says so loudly when not.
fn may_mount(test: &str) -> bool {
    let root = Path::new("/proc/self")
        .metadata()
        .is_ok_and(|process| process.uid() == 0);
    let try_out = || {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        Mounted::new(dir.path(), &["-t", "tmpfs", "tmpfs"]).map(drop)
    };
    let able = if root {
        try_out()
    } else {
        Err("it needs root".to_owned())
    };
    able.map_err(|why| eprintln!("SKIPPED {test}: {why}"))
        .is_ok()
}

/// A disk of its own: ext4 in a file.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// In `dir`. `None`, and said loudly: this machine lacks what it takes, `tools` included.
    fn new(dir: &Path, test: &str, tools: &[&[&str; 2]]) -> Option<Self> {
        for tool in [&[&["mkfs.ext4", "-V"], &["losetup", "-V"]], tools].concat() {
            if let Err(why) = run(Command::new(tool[0]).arg(tool[1])) {
                eprintln!("SKIPPED {test}: {why}");
                return None;
            }
        }
        let (image, at) = (dir.join("image"), dir.join("mounted"));
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image)).unwrap();
        Some(Self { image, at })
    }

    fn mount(&self) -> Mounted {
        let image = self.image.to_str().unwrap();
        Mounted::new(&self.at, &["-o", "loop", image]).unwrap()
    }
}

#[test]
fn after_a_power_cut_it_has_what_it_acknowledged() {
    let test = "after_a_power_cut_it_has_what_it_acknowledged";
    if !may_mount(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), test, &[&["perl", "-v"]]) else {
        return;
    };
    let at = &disk.at;
    let mut head = 0;
    for _ in 0..rounds(5) {
        let mounted = disk.mount();
        let mut writer = Writer::start(&at.join("store"));
        for _ in 0..rand::rng().random_range(1..800) {
            assert!(
                writer.acknowledge(),
                "the child goes on until the power is cut"
            );
        }
        // EXT4_IOC_SHUTDOWN without flushing the journal: what was not synced is gone.
        let cut = "open(F, '<', $ARGV[0]) or die $!; my $flag = pack('L', 2); ioctl(F, 0x8004587d, $flag) or die $!";
        run(Command::new("perl").args(["-e", cut]).arg(at)).unwrap();
        // The kernel lets a sync that is under way at that moment succeed although its data is lost (a
        // bare append and fdatasync shows it too), so the last commit that was not yet read is in doubt.
        let before = writer.acknowledged;
        let acknowledged = writer.kill().saturating_sub(LARGEST_COMMIT).max(before);
        drop(mounted);
        let _mounted = disk.mount();
        head = check_after(&at.join("store"), acknowledged.max(head));
    }
}

#[test]
fn a_file_system_that_became_read_only_costs_only_the_changes_that_meet_it() {
    let test = "a_file_system_that_became_read_only_costs_only_the_changes_that_meet_it";
    if !may_mount(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), test, &[]) else {
        return;
    };
    let mounted = disk.mount();
    let dir = disk.at.join("store");
    let store = open(&dir);
    write(&store, 20);
    let head = store.head();
    // As after an error of the disk: the kernel takes no write any more.
    run(Command::new("mount")
        .args(["-o", "remount,abort"])
        .arg(&disk.at))
    .unwrap();
    for again in [false, true, true] {
        match commit(&store, &[Do::Put(1000, vec![1; 1000])]) {
            Err(StoreError::Io { path, cause, .. }) => {
                assert!(path.starts_with(&dir), "{}", path.display());
                let read_only = cause.kind() == io::ErrorKind::ReadOnlyFilesystem;
                let gone = cause.raw_os_error() == Some(nix::libc::EIO);
                // Later it may say what to do: nobody knows what the disk has of the first.
                let next = again && cause.to_string().contains("restart");
                assert!(read_only || gone || next, "{cause}");
            }
            other => panic!("nothing can be written, but {other:?}"),
        }
        assert_eq!(store.head(), head);
        check(&store);
    }
    drop(store);
    drop(mounted);
    let _mounted = disk.mount();
    let store = open(&dir);
    assert_eq!(store.head(), head, "nothing more, nothing less");
    check(&store);
    write(&store, 3);
    check(&store);
}

/// Writes to `filler` until nothing more has room.
fn fill(filler: &Path) {
    let mut file = File::create(filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    file.write_all(&[1]).unwrap_err();
}

#[test]
fn a_full_disk_costs_only_the_changes_that_meet_it() {
    if !may_mount("a_full_disk_costs_only_the_changes_that_meet_it") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _mounted = Mounted::new(dir.path(), &["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).unwrap();
    let (dir, filler) = (dir.path().join("store"), dir.path().join("filler"));
    let store = open(&dir);
    write(&store, 20);
    for _ in 0..3 {
        let head = store.head();
        fill(&filler);
        match commit(&store, &[Do::Put(1000, vec![1; 100_000])]) {
            Err(StoreError::Io { cause, .. }) => {
                assert_eq!(cause.kind(), io::ErrorKind::StorageFull)
            }
            other => panic!("the disk is full, but {other:?}"),
        }
        assert_eq!(store.head(), head);
        assert_eq!(verified(&dir).unwrap(), head.index);
        check(&store);
        std::fs::remove_file(&filler).unwrap();
        write(&store, 3);
        check(&store);
    }
    // It cannot checkpoint at its end either.
    fill(&filler);
    drop(store);
    std::fs::remove_file(&filler).unwrap();
    let store = open(&dir);
    assert_eq!(store.head().index, 29);
    check(&store);
}
