//go:build !linux

package main

import "testing"

func smallDisk(t *testing.T, _ string) { t.Skip("Linux only") }
