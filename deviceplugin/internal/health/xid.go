package health

// Class says what an XID means for the GPU, not for the program that ran on it.
type Class string

// The classes.
const (
	// App is a fault of a program on the GPU: the GPU stays healthy.
	App Class = "application"
	// Note is worth a line in the log.
	Note Class = "note"
	// Reset leaves the GPU unusable until it is reset.
	Reset Class = "reset"
	// Hardware is damage: a reset may not help.
	Hardware Class = "hardware"
	// Gone is a GPU that fell off its bus.
	Gone Class = "gone"
)

// XID is one entry of the table.
type XID struct {
	Class Class
	Name  string
}

// table is what NVIDIA's "XID Errors" (docs.nvidia.com/deploy/xid-errors, r575 and r580) says of each number, in
// our classes. What the table does not know is a Note: the samples decide.
var table = map[int]XID{ // read only
	13: {App, "graphics engine exception"}, 31: {App, "GPU memory page fault"}, 32: {App, "invalid push buffer stream"},
	37: {App, "driver error processing a request"}, 38: {Reset, "driver firmware error"}, 39: {App, "copy engine fault"},
	43: {App, "GPU stopped processing for a faulty channel"}, 44: {App, "graphics engine fault during context switch"},
	45: {App, "preemptive channel removal"}, 46: {Reset, "GPU stopped processing"}, 48: {Reset, "double bit ECC error"},
	54: {Hardware, "auxiliary power is not connected"}, 56: {Note, "display engine error"},
	57: {Hardware, "error programming the video memory interface"}, 58: {Hardware, "unstable video memory interface"},
	61: {Reset, "internal micro-controller breakpoint"}, 62: {Reset, "internal micro-controller halt"},
	63: {Note, "row remapping or page retirement recorded"}, 64: {Hardware, "row remapping or page retirement failed"},
	65: {App, "video processor exception"}, 66: {App, "illegal access by the driver"}, 68: {App, "video processor exception"},
	69: {App, "graphics engine class error"}, 74: {Reset, "NVLink error"}, 79: {Gone, "GPU has fallen off the bus"},
	80: {Reset, "corrupted data sent to the GPU"}, 81: {Hardware, "VGA subsystem error"}, 92: {Note, "high single-bit ECC error rate"},
	94: {App, "contained memory error"}, 95: {Reset, "uncontained memory error"}, 109: {Reset, "context switch timeout"},
	110: {Reset, "security fault"}, 119: {Reset, "GSP RPC timeout"}, 120: {Reset, "GSP error"}, 121: {Note, "C2C link error, corrected"},
	122: {Hardware, "SPI read failure"}, 123: {Hardware, "SPI write failure"}, 124: {Hardware, "SPI erase failure"},
	125: {Hardware, "inforom failure"}, 136: {Reset, "link training failed"}, 137: {App, "NVLink fault of a remote access"},
	140: {Reset, "unrecovered ECC error"}, 142: {Note, "NVENC error"}, 143: {Reset, "GPU initialisation failure"},
	144: {Reset, "NVLink SAW error"}, 145: {Reset, "NVLink RLW error"}, 146: {Reset, "NVLink TLW error"},
	147: {Reset, "NVLink TREX error"}, 148: {Reset, "NVLink NVLPW_CTRL error"}, 149: {Reset, "NVLink NETIR error"},
	150: {Reset, "NVLink MSE error"}, 151: {Note, "key rotation error"}, 154: {Note, "recovery action changed"},
	155: {Note, "NVLink software defined error"}, 156: {Reset, "resource retirement event"}, 157: {Hardware, "resource retirement failure"},
	158: {Reset, "GPU fatal timeout"}, 160: {Hardware, "memory channel repair pending"}, 161: {Hardware, "memory channel repair failure"},
}

// LookUp gives an XID's entry.
func LookUp(xid int) XID {
	if x, ok := table[xid]; ok {
		return x
	}
	return XID{Note, "unknown XID"}
}
