// Timers, promises, worker threads, streams.
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const crypto = require('crypto');
const fs = require('fs');
if (!isMainThread) {
  parentPort.on('message', (message) => {
    if (message === null) return parentPort.close();
    let data = Buffer.from(`${workerData}/${message}`);
    for (let i = 0; i < 3000; i++) data = crypto.createHash('sha256').update(data).digest();
    parentPort.postMessage(data.toString('hex'));
  });
} else {
  const workers = [0, 1, 2].map((n) => new Worker(__filename, { workerData: n }));
  const ask = (worker, message) =>
    new Promise((resolve) => {
      worker.once('message', resolve);
      worker.postMessage(message);
    });
  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  let ticks = 0;
  const ticker = setInterval(() => ticks++, 20);
  const out = fs.createWriteStream('node.txt');
  (async () => {
    let chain = 'start';
    for (let step = 0; step < 180; step++) {
      const [answers] = await Promise.all([Promise.all(workers.map((w) => ask(w, step))), sleep(15)]);
      chain = crypto.createHash('sha256').update(chain + answers.join()).digest('hex');
      const garbage = Array.from({ length: 20000 }, (_, i) => ({ i, text: String(i) }));
      out.write(`${step} ${chain} ${garbage.length}\n`);
      if (step % 10 === 9) console.log(step, chain.slice(0, 16));
    }
    clearInterval(ticker);
    out.end();
    workers.forEach((w) => w.postMessage(null));
    console.log('end', chain, ticks > 10);
  })();
}
