import { createHash } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { type FileHandle, open, rename, rm, stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { NpucError } from '../errors.ts';

/** What a file must be: git's digest of small files, SHA-256 of large ones. */
export interface ExpectedFile {
  readonly size: number;
  /** `sha1` is git's object id: over `blob <size>\0` and the bytes. */
  readonly digest: { readonly kind: 'sha1' | 'sha256'; readonly hex: string };
}

export interface TransferOptions {
  /** Asks for a URL; must follow redirects and send no credentials to other origins. */
  readonly fetch: typeof fetch;
  /** Bytes of this file so far; goes back when a broken transfer starts again. */
  readonly progress?: (doneBytes: number) => void;
  readonly signal?: AbortSignal;
  /** Wait before the first retry, doubled each time (default 1000 ms). */
  readonly retryMs?: number;
  /** A transfer that is silent for so long is broken off and tried again (default 60 s). */
  readonly idleMs?: number;
}

/** Failures in a row without one byte of progress. */
const MAX_FAILURES = 4;

/** A refusal by the server that no retry mends. */
export class HttpRefusal extends Error {
  readonly status: number;
  readonly serverCode: string | undefined;

  constructor(response: Response) {
    super(`the server answered ${response.status}`);
    this.status = response.status;
    this.serverCode = response.headers.get('x-error-code') ?? undefined;
  }
}

/**
 * Downloads a file so that `target` appears only when it is complete and right. Bytes gather in `<target>.part`, from which a
 * later call goes on.
 * @throws HttpRefusal a status of 4xx, HB004 the server cannot be reached, HB005 the bytes are not the expected ones,
 *   IO002 the disk refuses them
 */
export async function downloadFile(
  url: string,
  target: string,
  expected: ExpectedFile,
  options: TransferOptions,
): Promise<void> {
  const part = `${target}.part`;
  let failures = 0;
  for (;;) {
    const before = await sizeOf(part);
    try {
      await transfer(url, part, expected.size, options);
      break;
    } catch (cause) {
      options.signal?.throwIfAborted();
      if (cause instanceof NpucError || cause instanceof HttpRefusal) throw cause;
      failures = (await sizeOf(part)) > before ? 1 : failures + 1;
      if (failures >= MAX_FAILURES) throw unreachable(url, cause);
      await sleep((options.retryMs ?? 1000) * 2 ** (failures - 1), undefined, { signal: options.signal });
    }
  }
  const wrong = await findMismatch(part, expected);
  if (wrong) {
    await rm(part, { force: true });
    throw new NpucError('HB005', {
      message: `the downloaded file is not the one that the hub describes: ${wrong}`,
      where: url,
      hint: 'the broken file was removed; try again',
    });
  }
  await rename(part, target);
}

/** HB004 with the reason that fetch hides in `cause`. */
export function unreachable(url: string, cause: unknown): NpucError {
  const inner = (cause as { cause?: { message?: string } }).cause?.message;
  return new NpucError('HB004', {
    message: `the hub cannot be reached: ${inner ?? (cause as Error).message}`,
    where: url,
    hint: 'check the network and HF_ENDPOINT; with HF_HUB_OFFLINE=1 only models that were downloaded before are used',
    cause,
  });
}

async function sizeOf(path: string): Promise<number> {
  return stat(path).then(
    (found) => found.size,
    () => 0,
  );
}

/** One request: appends to `part` what is missing, or starts anew where the server does not give ranges. */
async function transfer(url: string, part: string, size: number, options: TransferOptions): Promise<void> {
  let done = await sizeOf(part);
  if (done > size) {
    await rm(part);
    done = 0;
  }
  const file = await openForWriting(part);
  const idle = new AbortController();
  const signal = options.signal ? AbortSignal.any([options.signal, idle.signal]) : idle.signal;
  const watch = setTimeout(() => idle.abort(new Error('no bytes for too long')), options.idleMs ?? 60_000);
  try {
    if (done === size) return;
    const headers = done > 0 ? { range: `bytes=${done}-` } : undefined;
    const response = await options.fetch(url, { headers, signal });
    if (!response.ok || !response.body) {
      await response.body?.cancel();
      // A range that the server cannot give means that what is here is not a beginning of its file.
      if (response.status === 416) await file.truncate(0);
      else if (!isPassing(response.status)) throw new HttpRefusal(response);
      throw new Error(`the server answered ${response.status}`);
    }
    if (done > 0 && !response.headers.get('content-range')?.startsWith(`bytes ${done}-`)) {
      await file.truncate(0);
      done = 0;
    }
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      watch.refresh();
      if (done + chunk.length > size) {
        await file.truncate(0);
        throw new Error(`the server sends more than ${size} bytes`);
      }
      await write(file, chunk, done, part);
      done += chunk.length;
      options.progress?.(done);
    }
    if (done < size) throw new Error(`the transfer ended at ${done} of ${size} bytes`);
  } finally {
    clearTimeout(watch);
    await file.close();
  }
}

/** Whether the same question may be answered later: server errors, timeouts, too many requests. */
function isPassing(status: number): boolean {
  return status >= 500 || status === 408 || status === 429;
}

async function openForWriting(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDWR | constants.O_CREAT);
  } catch (cause) {
    throw cannotWrite(path, cause);
  }
}

async function write(file: FileHandle, chunk: Uint8Array, at: number, path: string): Promise<void> {
  try {
    for (let done = 0; done < chunk.length; ) {
      const { bytesWritten } = await file.write(chunk, done, chunk.length - done, at + done);
      done += bytesWritten;
    }
  } catch (cause) {
    throw cannotWrite(path, cause);
  }
}

/** IO002 for whatever the file system refused. */
export function cannotWrite(path: string, cause: unknown): NpucError {
  return new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
}

/** What is wrong with a complete file, or undefined. */
async function findMismatch(path: string, expected: ExpectedFile): Promise<string | undefined> {
  const size = await sizeOf(path);
  if (size !== expected.size) return `${size} bytes instead of ${expected.size}`;
  const { kind, hex } = expected.digest;
  const hash = createHash(kind);
  if (kind === 'sha1') hash.update(`blob ${size}\0`);
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Uint8Array);
  const found = hash.digest('hex');
  return found === hex ? undefined : `its ${kind} is ${found}, not ${hex}`;
}
