// Package handler has handlers that many pipelines need.
//
// Each is a struct whose zero value works; added to a pipeline it makes the state that a
// channel needs, so one value serves any number of channels. The one rule to keep is where
// to add it: each says between which others it belongs.
package handler
