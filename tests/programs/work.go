// Goroutines, channels, timers, garbage.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"sort"
	"sync"
	"time"
)

type task struct {
	number int
	data   []byte
}

func main() {
	tasks, results := make(chan task, 4), make(chan task)
	var group sync.WaitGroup
	for i := 0; i < 20; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for t := range tasks {
				for k := 0; k < 2000; k++ {
					sum := sha256.Sum256(t.data)
					t.data = append([]byte(nil), sum[:]...)
				}
				time.Sleep(time.Millisecond)
				results <- t
			}
		}()
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	ticks := 0
	stop := make(chan bool)
	go func() {
		for {
			select {
			case <-ticker.C:
				ticks++
			case <-stop:
				stop <- true
				return
			}
		}
	}()
	out, err := os.Create("go.txt")
	if err != nil {
		panic(err)
	}
	chain := [32]byte{}
	for step := 0; step < 350; step++ {
		go func() {
			for i := 0; i < 24; i++ {
				tasks <- task{i, []byte(fmt.Sprint(step, "/", i))}
			}
		}()
		var got []task
		for i := 0; i < 24; i++ {
			got = append(got, <-results)
		}
		sort.Slice(got, func(a, b int) bool { return got[a].number < got[b].number })
		all := chain[:]
		for _, t := range got {
			all = append(all, t.data...)
		}
		chain = sha256.Sum256(all)
		fmt.Fprintf(out, "%d %x\n", step, chain)
		if step%20 == 19 {
			runtime.GC()
			fmt.Printf("%d %x\n", step, chain[:8])
		}
	}
	close(tasks)
	group.Wait()
	stop <- true
	<-stop
	out.Close()
	fmt.Printf("end %x %v\n", chain, ticks > 5)
}
