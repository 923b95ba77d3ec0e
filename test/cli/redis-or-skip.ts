import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** Debian's Redis or Valkey. Absent: in CI a failure, elsewhere a loud skip. */
export const redisProgram: string | undefined = (() => {
  for (const name of ['redis-server', 'valkey-server']) {
    try {
      return execFileSync('which', [name], { encoding: 'utf8' }).trim();
    } catch {
      // The next one.
    }
  }
  if (process.env.CI) throw new Error('redis-server is absent: in CI that is a failure');
  console.warn('SKIPPED: redis-server is absent, sweeps over a queue are not tested (apt-get install redis-server)');
  return undefined;
})();

export interface RunningRedis {
  readonly url: string;
  /** Kills it, as a power cut would. */
  kill(): Promise<void>;
}

/** A Redis of our own that keeps nothing on disk, on the given port or a free one. */
export async function startRedis(port?: number): Promise<RunningRedis & { readonly port: number }> {
  const chosen = port ?? (await freePort());
  const folder = mkdtempSync(join(tmpdir(), 'npuc-redis-'));
  const args = ['--port', String(chosen), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', folder];
  const child: ChildProcess = spawn(redisProgram!, args, { stdio: ['ignore', 'pipe', 'ignore'] });
  await new Promise<void>((ready, reject) => {
    child.once('exit', (code) => reject(new Error(`redis-server exited with ${code}`)));
    child.stdout!.on('data', (chunk: Buffer) => {
      if (/ready to accept connections/i.test(chunk.toString())) ready();
    });
  });
  return {
    port: chosen,
    url: `redis://127.0.0.1:${chosen}`,
    kill: async () => {
      child.kill('SIGKILL');
      while (child.exitCode === null && child.signalCode === null) await sleep(20);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  const { port } = server.address() as { port: number };
  await new Promise((closed) => server.close(closed));
  return port;
}
