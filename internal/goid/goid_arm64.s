//go:build gc

#include "textflag.h"

// func Current() uintptr
TEXT ·Current(SB), NOSPLIT, $0-8
	MOVBU	·useSlow(SB), R0
	CBNZ	R0, fallback
	MOVD	g, R0
	MOVD	R0, ret+0(FP)
	RET
fallback:
	JMP	·slow(SB)
