//! The name server, asked over real sockets on loopback.

use super::*;
use std::collections::BTreeSet;
use std::str::FromStr;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);

fn names() -> BTreeMap<Ipv4Addr, Names> {
    let ip = Ipv4Addr::new(172, 21, 0, 2);
    let mut names = Names::default();
    names.addresses.insert("web".into(), BTreeSet::from([ip]));
    names.addresses.insert("web.example".into(), BTreeSet::from([ip]));
    names.reverse.insert(ip, "web".into());
    [(GATEWAY, names)].into()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

fn free_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn ask(port: u16, name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question(name, kind).to_vec().unwrap(), (GATEWAY, port)).await.unwrap();
    let mut buffer = [0; 512];
    let len = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.expect("no answer in 5 s").unwrap();
    Message::from_vec(&buffer[..len]).unwrap()
}

#[tokio::test]
async fn names_of_the_network_are_answered_in_any_case_and_both_ways() {
    let port = free_port();
    let mut dns = Dns::new(Path::new("/nonexistent"));
    dns.serve(&names(), &BTreeMap::new(), port).await.unwrap();
    for (name, kind, code, expected) in [
        ("WEB.", RecordType::A, ResponseCode::NoError, Some("172.21.0.2")),
        ("web.example.", RecordType::A, ResponseCode::NoError, Some("172.21.0.2")),
        ("web.", RecordType::AAAA, ResponseCode::NoError, None),
        ("nobody.", RecordType::A, ResponseCode::NXDomain, None),
        ("2.0.21.172.in-addr.arpa.", RecordType::PTR, ResponseCode::NoError, Some("web.")),
        ("example.org.", RecordType::A, ResponseCode::ServFail, None),
    ] {
        let answer = ask(port, name, kind).await;
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (77, code), "{name}");
        let data = answer.answers.first().map(|r| r.data.to_string());
        assert_eq!(data.as_deref(), expected, "{name} {kind}");
    }
}

#[tokio::test]
async fn tcp_answers_the_same_and_more_than_once_on_a_connection() {
    let port = free_port();
    let mut dns = Dns::new(Path::new("/nonexistent"));
    dns.serve(&names(), &BTreeMap::new(), port).await.unwrap();
    let mut stream = TcpStream::connect((GATEWAY, port)).await.unwrap();
    for _ in 0..2 {
        write_framed(&mut stream, &question("web.", RecordType::A).to_vec().unwrap()).await.unwrap();
        let answer = Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap();
        assert_eq!(answer.answers.len(), 1);
    }
}

#[tokio::test]
async fn other_names_go_to_the_next_server_byte_for_byte() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = [SocketAddr::from(([127, 0, 0, 1], 1)), upstream.local_addr().unwrap()];
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (_, client) = upstream.recv_from(&mut buffer).await.unwrap();
        upstream.send_to(&[buffer[0], buffer[1], 1, 2, 3], client).await.unwrap();
    });
    let question = question("example.org.", RecordType::A).to_vec().unwrap();
    assert_eq!(forward(&servers, &question, false).await.unwrap()[2..], [1, 2, 3]);
}

#[tokio::test]
async fn a_client_on_several_networks_sees_the_names_of_all_and_a_stranger_those_of_the_one_it_asks() {
    let other = Ipv4Addr::new(10, 0, 0, 1);
    let mut all = names();
    let mut more = Names::default();
    more.addresses.insert("db".into(), BTreeSet::from([Ipv4Addr::new(10, 0, 0, 2)]));
    let port = free_port();
    let mut dns = Dns::new(Path::new("/nonexistent"));
    dns.serve(&all, &BTreeMap::new(), port).await.unwrap();
    all.insert(other, more);
    // Only the first has an address here that can be listened on.
    let _ = dns.serve(&all, &BTreeMap::new(), port).await;
    assert_eq!(ask(port, "db.", RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
    let both = Asker { gateways: vec![other, GATEWAY], upstreams: Vec::new() };
    let _ = dns.serve(&all, &BTreeMap::from([(GATEWAY, both)]), port).await;
    for name in ["db.", "web."] {
        assert_eq!(ask(port, name, RecordType::A).await.answers.len(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_removed_network_is_no_longer_served() {
    let port = free_port();
    let mut dns = Dns::new(Path::new("/nonexistent"));
    dns.serve(&names(), &BTreeMap::new(), port).await.unwrap();
    dns.serve(&BTreeMap::new(), &BTreeMap::new(), port).await.unwrap();
    let mut bound = UdpSocket::bind((GATEWAY, port)).await;
    for _ in 0..1000 {
        if bound.is_ok() {
            return;
        }
        tokio::task::yield_now().await;
        bound = UdpSocket::bind((GATEWAY, port)).await;
    }
    panic!("the address is still in use: {bound:?}");
}

#[test]
fn reverse_names_and_servers_are_parsed() {
    assert_eq!(reversed("2.0.21.172.in-addr.arpa"), Some(Ipv4Addr::new(172, 21, 0, 2)));
    assert_eq!(reversed("2.0.21.in-addr.arpa"), None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, "# x\nnameserver 10.0.0.1\nsearch a\nnameserver ::1\nnameserver bad\n").unwrap();
    assert_eq!(upstreams(&path), ["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
}
