package sockopt

import (
	"math"
	"time"

	"github.com/runnel-io/runnel/internal/sys"
)

func tcpInfo(i *sys.TCPInfo) TCPInfo {
	micros := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
	millis := func(n uint32) time.Duration { return time.Duration(n) * time.Millisecond }
	if i.Min_rtt == math.MaxUint32 {
		i.Min_rtt = 0 // none measured yet
	}
	return TCPInfo{
		State:           TCPState(i.State),
		CongestionState: i.Ca_state,
		Options:         i.Options,

		RTT:     micros(uint64(i.Rtt)),
		RTTVar:  micros(uint64(i.Rttvar)),
		MinRTT:  micros(uint64(i.Min_rtt)),
		RecvRTT: micros(uint64(i.Rcv_rtt)),
		RTO:     micros(uint64(i.Rto)),
		ATO:     micros(uint64(i.Ato)),

		SendMSS:       i.Snd_mss,
		RecvMSS:       i.Rcv_mss,
		AdvertisedMSS: i.Advmss,
		PathMTU:       i.Pmtu,

		SendWindow: i.Snd_cwnd,
		Threshold:  i.Snd_ssthresh,
		RecvSpace:  i.Rcv_space,
		RecvLimit:  i.Rcv_ssthresh,

		Unacked:     i.Unacked,
		Sacked:      i.Sacked,
		Lost:        i.Lost,
		Resent:      i.Retrans,
		Backoff:     i.Backoff,
		Retransmits: i.Retransmits,
		Probes:      i.Probes,
		Reordering:  i.Reordering,

		SinceDataSent: millis(i.Last_data_sent),
		SinceDataRecv: millis(i.Last_data_recv),
		SinceAckRecv:  millis(i.Last_ack_recv),

		BytesSent:            i.Bytes_sent,
		BytesResent:          i.Bytes_retrans,
		BytesAcked:           i.Bytes_acked,
		BytesReceived:        i.Bytes_received,
		SegmentsSent:         i.Segs_out,
		SegmentsReceived:     i.Segs_in,
		DataSegmentsSent:     i.Data_segs_out,
		DataSegmentsReceived: i.Data_segs_in,
		TotalResent:          i.Total_retrans,
		DuplicatesReported:   i.Dsack_dups,
		ReorderingSeen:       i.Reord_seen,
		Unsent:               i.Notsent_bytes,

		PacingRate:        i.Pacing_rate,
		MaxPacingRate:     i.Max_pacing_rate,
		DeliveryRate:      i.Delivery_rate,
		Busy:              micros(i.Busy_time),
		RecvWindowLimited: micros(i.Rwnd_limited),
		SendBufferLimited: micros(i.Sndbuf_limited),
	}
}
