package sockopt

import (
	"time"

	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// TCPInfo is a snapshot of what the kernel knows of a TCP connection. What a kernel
// does not know yet is 0. Netty: EpollTcpInfo.
type TCPInfo struct {
	State           TCPState
	CongestionState uint8 // 0 open, 1 disorder, 2 window reduced, 3 recovery, 4 loss
	Options         uint8 // agreed on: 1 timestamps, 2 SACK, 4 window scaling, 8 ECN, 32 data in the SYN

	RTT     time.Duration // smoothed round trip, in microseconds
	RTTVar  time.Duration // its mean deviation
	MinRTT  time.Duration // least seen in the last minutes
	RecvRTT time.Duration // as the receiver sees it, 0 if it cannot
	RTO     time.Duration // retransmission timeout
	ATO     time.Duration // delayed acknowledgements wait for so long

	SendMSS, RecvMSS, AdvertisedMSS uint32 // segment sizes, bytes
	PathMTU                         uint32 // bytes

	SendWindow uint32 // congestion window, segments
	Threshold  uint32 // of slow start, segments; 1<<31-1 while none is known
	RecvSpace  uint32 // what the receive buffer is fitted to, bytes
	RecvLimit  uint32 // the window that may be advertised, bytes

	Unacked     uint32 // segments sent and not acknowledged; of a listener, connections that wait
	Sacked      uint32 // of those, acknowledged out of order; of a listener, its backlog
	Lost        uint32 // of those, believed lost
	Resent      uint32 // of those, sent again
	Backoff     uint8  // doublings of the RTO
	Retransmits uint8  // timeouts in a row without an answer
	Probes      uint8  // probes of the window or of life without an answer
	Reordering  uint32 // how far segments overtake each other, segments

	SinceDataSent time.Duration // in milliseconds, as the next two
	SinceDataRecv time.Duration
	SinceAckRecv  time.Duration

	BytesSent, BytesResent, BytesAcked, BytesReceived uint64 // since the connect
	SegmentsSent, SegmentsReceived                    uint32
	DataSegmentsSent, DataSegmentsReceived            uint32
	TotalResent                                       uint32 // segments
	DuplicatesReported                                uint32 // segments that came twice at the peer
	ReorderingSeen                                    uint32 // times
	Unsent                                            uint32 // bytes in the kernel, not sent yet

	PacingRate, MaxPacingRate uint64        // bytes a second; 1<<64-1 is no limit
	DeliveryRate              uint64        // bytes a second, the latest measure
	Busy                      time.Duration // time in which there was something to send
	RecvWindowLimited         time.Duration // of that, the peer's window was full
	SendBufferLimited         time.Duration // of that, this end's buffer was the limit
}

// TCPState is a state of RFC 9293, with the numbers of Linux.
type TCPState uint8

// The states of a TCP connection.
const (
	Established TCPState = iota + 1
	SynSent
	SynReceived
	FinWait1
	FinWait2
	TimeWait
	Closed
	CloseWait
	LastAck
	Listening
	Closing
)

var stateNames = [...]string{"unknown", "established", "syn sent", "syn received", "fin wait 1",
	"fin wait 2", "time wait", "closed", "close wait", "last ack", "listening", "closing"}

// String returns the state in small letters.
func (s TCPState) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return stateNames[0]
}

// ReadTCPInfo returns a snapshot for ch. It costs a system call of a microsecond or so.
//
// Any goroutine.
func ReadTCPInfo(ch pipeline.Channel) (TCPInfo, error) {
	return read(ch, "TCP_INFO", func(fd int) (TCPInfo, error) {
		i, err := sys.GetTCPInfo(fd)
		if err != nil {
			return TCPInfo{}, err
		}
		return tcpInfo(&i), nil
	})
}
