//! Datagrams of one length that the kernel is handed in one piece, and cuts: a call for each costs more than it does.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

/// Datagrams that go together. The kernel cuts at most 128 pieces of one, and what is answered must not overflow a socket.
pub const TOGETHER: usize = 64;

/// A socket for them.
pub struct Pieces {
    pub socket: UdpSocket,
    pub state: UdpSocketState,
}

impl Pieces {
    /// # Errors
    /// There is no socket to be had.
    pub fn new() -> io::Result<Pieces> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Pieces { socket, state })
    }

    /// Sends `contents` as datagrams of `size` bytes. What the kernel has no room for is lost, as any datagram may be.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&self, destination: SocketAddr, contents: &[u8], size: usize) -> io::Result<()> {
        for contents in contents.chunks(TOGETHER * size.max(1)) {
            let transmit = Transmit { destination, ecn: None, contents, segment_size: Some(size), src_ip: None };
            match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_together_comes_one_by_one() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let contents: Vec<u8> = (0..=255).cycle().take(3 * (TOGETHER + 1)).collect();
        Pieces::new().unwrap().send(server.local_addr().unwrap(), &contents, 3).unwrap();
        let mut buffer = [0; 512];
        for piece in contents.chunks(3) {
            let length = server.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], piece);
        }
    }
}
