//! Carries a process's output: both pipes, or the terminal, in the order in which they have something.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, BorrowedFd};
use zone::log::{MAX_PIECE, Stream};

/// What is read at most after the process's end: a pipe can be made this large, and all that the process wrote is in it by then.
const MAX_AFTER_EXIT: usize = 1 << 20;
/// How long a terminal may take to pass on what was written to it, nanoseconds.
const TERMINAL_DELAY_NS: i64 = 200_000_000;

/// What a process writes at once when it writes much: a full buffer of the C library's.
const MUCH: usize = 4096;

/// Reads until both ends have come. With `process` (a pidfd), also ends when that process has exited and what it wrote is read:
/// a child of it that lives on may hold the pipes for ever.
pub fn pump(
    output: BorrowedFd<'_>,
    error: Option<BorrowedFd<'_>>,
    process: Option<BorrowedFd<'_>>,
    mut take: impl FnMut(Stream, &[u8]),
) {
    let terminal = error.is_none();
    let mut sources: Vec<(Stream, BorrowedFd<'_>)> = vec![(Stream::Stdout, output)];
    sources.extend(error.map(|fd| (Stream::Stderr, fd)));
    let mut buffer = vec![0u8; MAX_PIECE];
    let mut exited = false;
    let mut left = MAX_AFTER_EXIT;
    while !sources.is_empty() && left > 0 {
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        fds.extend(process.filter(|_| !exited).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let limit = Timespec { tv_sec: 0, tv_nsec: if terminal { TERMINAL_DELAY_NS } else { 0 } };
        let Ok(ready) = rustix::io::retry_on_intr(|| poll(&mut fds, exited.then_some(&limit))) else { return };
        if exited && ready == 0 {
            return;
        }
        let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut index = 0;
        sources.retain(|(stream, fd)| {
            index += 1;
            if !is_ready[index - 1] {
                return true;
            }
            match read(fd.as_fd(), &mut buffer) {
                // A terminal whose other side is closed by all says EIO.
                Ok(0) | Err(_) => false,
                Ok(length) => {
                    take(*stream, &buffer[..length]);
                    left = if exited { left.saturating_sub(length) } else { left };
                    true
                }
            }
        });
        // After the reads: what was ready at the exit's notice was written before it, and more may be.
        exited |= is_ready.get(index).copied().unwrap_or(false);
    }
}

/// Reads what there is. A process that writes much writes more while it is let: fewer and larger pieces cost the guest and the
/// host less. Short output, somebody's answer, is not kept waiting.
fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let mut length = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?;
    while (MUCH..buffer.len()).contains(&length) {
        std::thread::yield_now();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if ready != Ok(1) || !fds[0].revents().contains(PollFlags::IN) {
            break;
        }
        match rustix::io::read(fd, &mut buffer[length..]) {
            // The end is read again by the next call.
            Ok(0) | Err(_) => break,
            Ok(more) => length += more,
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn everything_is_read_until_both_have_ended() {
        let (out, out_w) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (err, err_w) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let writer = std::thread::spawn(move || {
            for _ in 0..100 {
                rustix::io::write(&out_w, &[1; 4096]).unwrap();
            }
            drop(out_w);
            rustix::io::write(&err_w, b"late").unwrap();
        });
        let (mut bytes, mut late) = (0, Vec::new());
        pump(out.as_fd(), Some(err.as_fd()), None, |stream, piece| match stream {
            Stream::Stdout => bytes += piece.len(),
            Stream::Stderr => late.extend_from_slice(piece),
        });
        writer.join().unwrap();
        assert_eq!((bytes, late.as_slice()), (409_600, &b"late"[..]));
    }

    #[test]
    fn a_pipe_that_is_held_open_does_not_outlive_the_process() {
        let (out, out_w) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (err, _err_w) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::io::write(&out_w, b"last words").unwrap();
        let mut text = Vec::new();
        pump(out.as_fd(), Some(err.as_fd()), Some(pidfd.as_fd()), |_, piece| text.extend_from_slice(piece));
        child.wait().unwrap();
        assert_eq!(text, b"last words");
    }
}
