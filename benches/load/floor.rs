//! The floor: a tokio server that frames the protocol like Gatepost and answers OK without any work.

use std::path::Path;

use anyhow::Context;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const GREETING: &[u8] = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\n\
    COOKIE\t00000000000000000000000000000000\nDONE\n";

/// Serves until killed.
pub fn serve(socket: &Path) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = UnixListener::bind(socket).context("binding the socket")?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream));
        }
    })
}

async fn answer(mut stream: UnixStream) -> std::io::Result<()> {
    let mut input = BytesMut::new();
    let mut output = GREETING.to_vec();
    loop {
        stream.write_all(&output).await?;
        output.clear();
        input.reserve(16 * 1024);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        while let Some(end) = memchr::memchr(b'\n', &input) {
            let line = input.get(..end).unwrap_or_default();
            if let Some(request) = line.strip_prefix(b"AUTH\t") {
                let id = request.split(|byte| *byte == b'\t').next().unwrap_or_default();
                output.extend_from_slice(b"OK\t");
                output.extend_from_slice(id);
                output.extend_from_slice(b"\tuser=person000000@load.example\n");
            }
            input.advance(end + 1);
        }
    }
}
