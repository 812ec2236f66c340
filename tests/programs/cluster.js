// Workers of Node.js's cluster that accept on one port, and clients in the first process that check the answers.
const cluster = require('cluster'), net = require('net');
const rounds = Number(process.argv[2]), clients = 6, workers = 3;
if (cluster.isPrimary) {
  const sums = [];
  let open = clients, listening = 0;
  for (let number = 0; number < workers; number++) cluster.fork();
  cluster.on('listening', (worker, address) => {
    if (++listening < workers) return;
    for (let number = 0; number < clients; number++) ask(number, address.port);
  });
  cluster.on('exit', (worker, code, signal) => {
    if (open > 0) throw new Error(`a worker has ended: ${code} ${signal}`);
  });
  // A connection for every twenty requests, so that workers accept all the time.
  const ask = (number, port, round = 0, sum = 0) => {
    const socket = net.connect(port, '127.0.0.1');
    const send = () => socket.write(`${round * 1009 + number}\n`);
    let rest = '';
    socket.setEncoding('utf8');
    socket.on('connect', send);
    socket.on('data', (data) => {
      const lines = (rest + data).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (Number(line) !== (round * 1009 + number) * 7) throw new Error(`wrong: ${line}`);
        sum += Number(line);
        if (++round % 20) { send(); continue; }
        socket.end();
        if (round < rounds) { ask(number, port, round, sum); continue; }
        sums[number] = sum;
        if (--open === 0) { console.log(sums.join(' ')); cluster.disconnect(); }
      }
    });
  };
} else {
  net.createServer((socket) => {
    let rest = '';
    socket.setEncoding('utf8');
    socket.on('data', (data) => {
      const lines = (rest + data).split('\n');
      rest = lines.pop();
      for (const line of lines) { socket.write(`${Number(line) * 7}\n`); }
    });
  }).listen(0, '127.0.0.1');
}
