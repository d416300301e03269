// Linearizable says whether histories of compare-and-set on a register can be explained by one order of its operations.
// Porcupine searches that order.
//
// The input is JSON, an array of operations. Each has the `register`, a `client`, the times `called` and `returned` (of
// one clock, in any unit; an operation without an answer may have returned later than all others), and a `kind`:
//
//	read       returned the `value`
//	written    replaced `expected` by `value`
//	refused    found another value than `expected`
//	unknown    replaced `expected` by `value`, or had no effect
//
// A register begins with the value 0. Exit code 0: linearizable; 1: not; the names of the registers that are not are
// printed. 2: not decided in a minute.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

const decideWithin = time.Minute

type operation struct {
	Register string `json:"register"`
	Client   int    `json:"client"`
	Called   int64  `json:"called"`
	Returned int64  `json:"returned"`
	Kind     string `json:"kind"`
	Expected int64  `json:"expected"`
	Value    int64  `json:"value"`
}

var register = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		value, of := state.(int64), input.(operation)
		switch of.Kind {
		case "read":
			return value == of.Value, value
		case "written":
			return value == of.Expected, of.Value
		case "refused":
			return value != of.Expected, value
		}
		if value == of.Expected {
			return true, of.Value
		}
		return true, value
	},
}

func main() {
	log.SetFlags(0)
	var operations []operation
	if err := json.NewDecoder(os.Stdin).Decode(&operations); err != nil {
		log.Fatal(err)
	}
	histories := map[string][]porcupine.Operation{}
	for _, one := range operations {
		histories[one.Register] = append(histories[one.Register], porcupine.Operation{
			ClientId: one.Client, Input: one, Call: one.Called, Output: nil, Return: one.Returned,
		})
	}
	code := 0
	for name, history := range histories {
		switch porcupine.CheckOperationsTimeout(register, history, decideWithin) {
		case porcupine.Illegal:
			fmt.Println(name)
			code = max(code, 1)
		case porcupine.Unknown:
			fmt.Printf("%s: not decided\n", name)
			code = 2
		}
	}
	os.Exit(code)
}
