//! A container to be probed by gRPC.

/// A gRPC server on port 50051, for `perl -e`, of the standard health service that answers SERVING to whatever it is
/// asked: HTTP/2 by hand.
pub const GRPC_SERVER: &str = r#"
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => 50051, Listen => 5, ReuseAddr => 1) or die $!;
sub take { my ($c, $n) = @_; my $all = ""; while (length($all) < $n) { sysread($c, $all, $n - length($all), length($all)) or return undef } $all }
sub give { my ($c, $type, $flags, $stream, $data) = @_; syswrite($c, pack("CnCCN", 0, length($data), $type, $flags, $stream) . $data) }
while (my $c = $server->accept) {
    take($c, 24);
    give($c, 4, 0, 0, "");
    while (defined(my $head = take($c, 9))) {
        my ($high, $low, $type, $flags, $stream) = unpack("CnCCN", $head);
        my $size = ($high << 16) | $low;
        my $data = $size ? take($c, $size) : "";
        give($c, 4, 1, 0, "") if $type == 4 && !($flags & 1);
        give($c, 6, 1, 0, $data) if $type == 6 && !($flags & 1);
        if ($type == 0 && $flags & 1) {
            give($c, 1, 4, $stream, "\x88\x0f\x10\x10application/grpc");
            give($c, 0, 0, $stream, "\0\0\0\0\x02\x08\x01");
            give($c, 1, 5, $stream, "\0\x0bgrpc-status\x010");
        }
    }
}
"#;
