import type { ChildProcess } from 'node:child_process';
import { resolve } from 'node:path';
import type { Duplex } from 'node:stream';
import { NpucError } from '../errors.ts';
import { byteLengthOf, DTYPES } from '../ir/dtype.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import {
  type Answer,
  FrameReader,
  type OpenedSession,
  type Request,
  sendFrame,
  type WireTensor,
} from './native-frames.ts';
import { readLog, readLogTail, readPeakRss, type StartedChild, spawnChild } from './native-process.ts';
import type { ContextInfo } from './native-qnn-system.ts';
import { explainQnnText } from './qnn-codes.ts';
import type { PortInfo, Runner, Tensors } from './runner.ts';
import { forbidTelemetry } from './telemetry.ts';

/** The native libraries that a host loads; paths are absolute. */
export interface NativeToolchain {
  readonly root: string;
  readonly onnxruntimeLibrary: string;
  /** The folder of libQnnHtp.so, libQnnSystem.so and the ONNX Runtime plugin. */
  readonly qnnLibraryFolder: string;
  readonly versions: Readonly<Record<string, string>>;
}

export interface HostOptions {
  /** ONNX Runtime's log severity: 0 verbose (the QNN plugin then says why it refuses nodes) to 4; default 2, warnings. */
  readonly logSeverity?: 0 | 1 | 2 | 3 | 4;
  /** The parent of the child's temporary folder; default the system's. */
  readonly workFolder?: string;
  /** Resident bytes above which the child is ended; it is looked at five times a second. */
  readonly memoryLimit?: number;
  /** Kills the child when aborted. */
  readonly signal?: AbortSignal;
}

export interface SessionOptions {
  readonly provider: 'cpu' | 'qnn';
  /** QNN: the vendor's SoC number. Leave it out when loading a context binary. */
  readonly soc?: number;
  /** QNN provider options as the vendor spells them. */
  readonly providerOptions?: Readonly<Record<string, string>>;
  readonly sessionConfig?: Readonly<Record<string, string>>;
  readonly optimization?: 'none' | 'basic' | 'extended' | 'all';
  /** Threads inside one operator on the CPU provider; 0 lets ONNX Runtime choose. */
  readonly threads?: number;
}

const OPTIMIZATION = { none: 0, basic: 1, extended: 2, all: 99 } as const;
const CLOSE_GRACE_MS = 3_000;
const MEMORY_POLL_MS = 200;

interface Pending {
  readonly what: string;
  readonly resolve: (value: { result: unknown; blobs: Uint8Array[] }) => void;
  readonly reject: (error: Error) => void;
}

/** The child answered with an error of the engine; callers give it the code that fits. */
export class NativeFailure extends Error {
  readonly result: unknown;
  constructor(message: string, result?: unknown) {
    super(message);
    this.result = result;
  }
}

/**
 * A child process with ONNX Runtime loaded. Native crashes, kills and out-of-memory end the child and become coded
 * errors of the calls in flight and of all later ones; they never take the tool down. The child works in a temporary
 * folder of its own and dies with this process, however that ends.
 */
export class NativeHost {
  /** The child's working folder; removed when it ends. */
  readonly folder: string;
  readonly version: string;
  readonly toolchain: NativeToolchain;
  readonly #child: ChildProcess;
  readonly #socket: Duplex;
  readonly #pending: Pending[] = [];
  readonly #exited: Promise<void>;
  #death: NpucError | undefined;
  #closing = false;
  #nextSession = 1;
  #peakRssBytes = 0;
  #outgrew = false;
  readonly #memoryLimit: number;

  private constructor(toolchain: NativeToolchain, version: string, parts: StartedChild, memoryLimit: number) {
    this.toolchain = toolchain;
    this.version = version;
    this.folder = parts.folder;
    this.#child = parts.child;
    this.#socket = parts.socket;
    this.#exited = parts.exited;
    this.#memoryLimit = memoryLimit;
  }

  /**
   * @throws RT201 when the child cannot start or the libraries cannot be loaded, QN006 when the library is not the
   *   version whose interface this code knows.
   */
  static async start(toolchain: NativeToolchain, options: HostOptions = {}): Promise<NativeHost> {
    options.signal?.throwIfAborted();
    const { onnxruntimeLibrary, qnnLibraryFolder } = toolchain;
    const severity = String(options.logSeverity ?? 2);
    forbidTelemetry();
    const parts = spawnChild([onnxruntimeLibrary, qnnLibraryFolder, severity], qnnLibraryFolder, options.workFolder);
    const limit = options.memoryLimit ?? Number.POSITIVE_INFINITY;
    const host = new NativeHost(toolchain, toolchain.versions.onnxruntime ?? '', parts, limit);
    host.#listen(options.signal);
    const greeting = new Promise((resolve, reject) => {
      host.#pending.push({ what: 'start', resolve, reject });
    });
    try {
      await greeting;
      host.#rest();
      return host;
    } catch (cause) {
      const log = host.logTail(6);
      await host.kill();
      if (cause instanceof NativeFailure && (cause.result as { unsupported?: boolean } | undefined)?.unsupported)
        throw new NpucError('QN006', {
          message: `the toolchain's library does not fit: ${cause.message}`,
          where: toolchain.onnxruntimeLibrary,
          hint: 'remove the folder and install the toolchain again',
        });
      if (cause instanceof NpucError) throw cause;
      throw new NpucError('RT201', {
        message: `ONNX Runtime could not be loaded: ${(cause as Error).message}${log ? `\n${log}` : ''}`,
        where: toolchain.onnxruntimeLibrary,
        cause,
      });
    }
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Loads a model. @throws RT202 when the child dies, RT110 with the engine's message when the model is refused. */
  async openSession(model: string, options: SessionOptions): Promise<NativeSession> {
    const id = this.#nextSession++;
    const qnn = options.provider === 'qnn';
    try {
      const { result } = await this.#request(`opening ${model}`, {
        op: 'open',
        session: id,
        // Relative names stay relative to the child's folder: the vendor's compiler hashes them into its output.
        model: model.startsWith('./') ? model.slice(2) : resolve(model),
        options: {
          provider: options.provider,
          providerOptions: {
            ...(qnn ? { htp_graph_finalization_optimization_mode: '3' } : {}),
            ...(options.soc === undefined ? {} : { soc_model: String(options.soc) }),
            ...options.providerOptions,
          },
          sessionConfig: {
            // By default ONNX Runtime runs int4 and int8 MatMul weights with activations rounded to 8 bits (50 dB from
            // what the QDQ model says); level 1 is exact f32.
            ...(qnn ? {} : { 'session.qdq_matmulnbits_accuracy_level': '1' }),
            ...options.sessionConfig,
            // Without this nodes that the NPU refuses run on the CPU, silently.
            ...(qnn ? { 'session.disable_cpu_ep_fallback': '1' } : {}),
          },
          optimizationLevel: OPTIMIZATION[options.optimization ?? 'all'],
          threads: options.threads ?? 0,
        },
      });
      return new NativeSession(this, id, options.provider, result as OpenedSession);
    } catch (cause) {
      if (!(cause instanceof NativeFailure)) throw cause;
      const said = this.#recentErrors();
      throw new NpucError('RT110', {
        message: [`ONNX Runtime refuses the model: ${cause.message}`, ...said.map((line) => `  ${line}`)].join('\n'),
        where: model,
        ...explain(cause),
        cause,
      });
    }
  }

  /** What a context binary holds. @throws RT202 when the child dies, QN014 when the file is not one. */
  async readContext(path: string): Promise<ContextInfo> {
    try {
      const { result } = await this.#request(`reading ${path}`, { op: 'context-info', path: resolve(path) });
      return result as ContextInfo;
    } catch (cause) {
      if (!(cause instanceof NativeFailure)) throw cause;
      throw new NpucError('QN014', {
        message: `the context binary cannot be read: ${cause.message}`,
        where: path,
        ...explain(cause),
        cause,
      });
    }
  }

  /** Peak resident memory of the child in bytes: as it says itself, or as last seen when it has died. */
  async peakRssBytes(): Promise<number> {
    if (!this.#death && !this.#closing) {
      const { result } = await this.#request('reading memory', { op: 'memory' });
      this.#peakRssBytes = (result as { peakRssBytes: number }).peakRssBytes;
    }
    return this.#peakRssBytes;
  }

  /** Processor time of the child so far, all threads. @throws RT202 when it has died */
  async cpuSeconds(): Promise<number> {
    const { result } = await this.#request('reading memory', { op: 'memory' });
    return (result as { cpuSeconds: number }).cpuSeconds;
  }

  /** The whole log that the libraries have written so far, without colour codes. */
  log(): string {
    return readLog(this.folder);
  }

  /** The last lines of the log. */
  logTail(lines: number): string {
    return readLogTail(this.folder, lines);
  }

  /** Ends the child and removes its folder; work in flight gets a few seconds to finish. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#work();
    this.#socket.end();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), CLOSE_GRACE_MS);
    await this.#exited;
    clearTimeout(timer);
  }

  /** Ends the child at once. */
  async kill(): Promise<void> {
    this.#closing = true;
    this.#work();
    this.#child.kill('SIGKILL');
    await this.#exited;
  }

  /** @internal One request of a session. */
  async ask(what: string, request: Request, blobs: readonly Uint8Array[] = []) {
    return await this.#request(what, request, blobs);
  }

  async #request(what: string, request: Request, blobs: readonly Uint8Array[] = []) {
    if (this.#death) throw this.#death;
    if (this.#closing) throw new NpucError('XX001', { message: `${what}: the native host is closed` });
    const answer = new Promise<{ result: unknown; blobs: Uint8Array[] }>((resolve, reject) => {
      this.#pending.push({ what, resolve, reject });
    });
    this.#work();
    sendFrame(this.#socket, request, blobs);
    try {
      return await answer;
    } finally {
      if (this.#pending.length === 0) this.#rest();
    }
  }

  /** What the libraries logged as errors lately, such as the nodes that the NPU does not take. */
  #recentErrors(): string[] {
    const lines = this.logTail(20).split('\n');
    const errors = lines.flatMap((line) => /\[E:onnxruntime\S* \S+ .*?\] (Unsupported nodes.*)$/.exec(line)?.[1] ?? []);
    return [...new Set(errors)];
  }

  /** An idle host does not keep the process alive; a working one does. */
  #rest(): void {
    this.#child.unref();
    (this.#socket as Duplex & { unref(): void }).unref();
  }

  #work(): void {
    this.#child.ref();
    (this.#socket as Duplex & { ref(): void }).ref();
  }

  #listen(signal: AbortSignal | undefined): void {
    const reader = new FrameReader<Answer>((answer, blobs) => {
      const pending = this.#pending.shift();
      if (!pending) return;
      if (answer.error === undefined) pending.resolve({ result: answer.result, blobs });
      else pending.reject(new NativeFailure(answer.error, answer.result));
    });
    this.#socket.on('data', (chunk: Uint8Array) => reader.push(chunk));
    // A broken pipe is seen as the child's exit as well, which says more.
    this.#socket.on('error', () => {});
    const abort = () => this.#child.kill('SIGKILL');
    signal?.addEventListener('abort', abort, { once: true });
    const poll = setInterval(() => this.#pollMemory(), MEMORY_POLL_MS);
    poll.unref();
    const die = (error: NpucError | undefined) => {
      clearInterval(poll);
      signal?.removeEventListener('abort', abort);
      this.#death ??= error;
      for (const pending of this.#pending.splice(0)) pending.reject(this.#death!);
    };
    // After a planned end nobody waits for an answer, and there is nothing to say.
    this.#child.once('close', (code, signalName) => {
      const planned = this.#closing && this.#pending.length === 0;
      die(planned ? undefined : this.#describeDeath(code, signalName, signal));
    });
    this.#child.once('error', (cause) => {
      die(new NpucError('RT201', { message: `the native process cannot be started: ${cause.message}`, cause }));
    });
  }

  /** The last value before a crash is all that is known about a dead child's memory. */
  #pollMemory(): void {
    if (this.#pending.length === 0) return;
    try {
      this.#peakRssBytes = Math.max(this.#peakRssBytes, readPeakRss(this.pid));
      if (this.#peakRssBytes <= this.#memoryLimit || this.#outgrew) return;
      this.#outgrew = true;
      this.#child.kill('SIGKILL');
    } catch {
      // It has just ended: the exit event tells the rest.
    }
  }

  #describeDeath(code: number | null, signalName: NodeJS.Signals | null, signal: AbortSignal | undefined): NpucError {
    const what = this.#pending[0]?.what ?? 'idle';
    const how = signalName ? `by ${signalName}` : `with exit code ${code}`;
    const peak = this.#peakRssBytes > 0 ? ` (peak memory seen ${Math.round(this.#peakRssBytes / 2 ** 20)} MiB)` : '';
    const tail = this.logTail(8);
    if (this.#outgrew) {
      return new NpucError('RT203', {
        message: `the native process needed more than ${Math.floor(this.#memoryLimit / 2 ** 20)} MiB while ${what}${peak}`,
        hint: 'give it more memory (--max-memory), or cut the model into more parts (--split)',
      });
    }
    const killed = signalName === 'SIGKILL' && !signal?.aborted;
    const interrupted = signalName === 'SIGINT' || signal?.aborted;
    return new NpucError('RT202', {
      message: `the native process ended ${how} while ${what}${peak}${tail ? `\n${tail}` : ''}`,
      hint: killed
        ? 'someone killed it, or the system ran out of memory: free memory, or cut the model (--max-memory, --split)'
        : interrupted
          ? 'it was interrupted'
          : 'this is a crash inside the vendor libraries; a smaller graph or other options may avoid it',
      exitCode: killed || interrupted ? 2 : 70,
    });
  }
}

/** One loaded model; tensors go in and out by name. */
export class NativeSession implements Runner {
  readonly engine: string;
  readonly inputs: readonly PortInfo[];
  readonly outputs: readonly PortInfo[];
  readonly #host: NativeHost;
  readonly #id: number;

  /** @internal */
  constructor(host: NativeHost, id: number, provider: 'cpu' | 'qnn', ports: OpenedSession) {
    this.#host = host;
    this.#id = id;
    const qnn = host.toolchain.versions.qairt;
    this.engine = provider === 'cpu' ? `onnxruntime ${host.version} cpu` : `qnn ${qnn} htp simulator`;
    this.inputs = ports.inputs;
    this.outputs = ports.outputs;
  }

  /**
   * Runs once; `outputs` limits what is fetched.
   * @throws RT011 when the feeds do not fit the ports, RT111 with the engine's message when it fails, RT202 when the child
   *   dies.
   */
  async run(feeds: Tensors, outputs?: readonly string[]): Promise<Record<string, TensorData>> {
    const names = outputs ?? this.outputs.map((port) => port.name);
    for (const name of names) {
      if (!this.outputs.some((port) => port.name === name))
        throw new NpucError('RT011', { message: `there is no output ${name}`, hint: this.#list(this.outputs) });
    }
    const wire: WireTensor[] = [];
    const blobs: Uint8Array[] = [];
    for (const port of this.inputs) {
      const tensor = feeds[port.name];
      if (!tensor)
        throw new NpucError('RT011', { message: `input ${port.name} is not fed`, hint: this.#list(this.inputs) });
      checkFeed(port, tensor);
      wire.push({ name: port.name, dtype: tensor.dtype, shape: tensor.shape });
      blobs.push(new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength));
    }
    for (const name of Object.keys(feeds)) {
      if (!this.inputs.some((port) => port.name === name))
        throw new NpucError('RT011', { message: `there is no input ${name}`, hint: this.#list(this.inputs) });
    }
    try {
      const request: Request = { op: 'run', session: this.#id, feeds: wire, outputs: names };
      const answer = await this.#host.ask('running a model', request, blobs);
      const tensors = answer.result as WireTensor[];
      return Object.fromEntries(tensors.map((tensor, index) => [tensor.name, toTensor(tensor, answer.blobs[index]!)]));
    } catch (cause) {
      if (!(cause instanceof NativeFailure)) throw cause;
      throw new NpucError('RT111', { message: `the model failed to run: ${cause.message}`, ...explain(cause), cause });
    }
  }

  /** Frees the model; harmless when the child has died. */
  async close(): Promise<void> {
    try {
      await this.#host.ask('closing a model', { op: 'release', session: this.#id });
    } catch (error) {
      if (!(error instanceof NpucError)) throw error;
    }
  }

  #list(ports: readonly PortInfo[]): string {
    return `the model has ${ports.map((port) => `${port.name} ${port.dtype}[${port.shape}]`).join(', ')}`;
  }
}

/** What the vendor's number in a failure means, as the hint of an error. */
function explain(cause: NativeFailure): { readonly hint?: string } {
  const hint = explainQnnText(cause.message);
  return hint === undefined ? {} : { hint };
}

function checkFeed(port: PortInfo, tensor: TensorData): void {
  const fits =
    tensor.shape.length === port.shape.length &&
    tensor.shape.every((dim, axis) => port.shape[axis]! < 0 || dim === port.shape[axis]);
  if (tensor.dtype !== port.dtype || !fits)
    throw new NpucError('RT011', {
      message: `input ${port.name} takes ${port.dtype}[${port.shape}], not ${tensor.dtype}[${tensor.shape}]`,
    });
  const { bits } = DTYPES[tensor.dtype];
  if (bits < 8)
    throw new NpucError('RT011', {
      message: `input ${port.name}: ${tensor.dtype} cannot be fed, only stored as weights`,
    });
  const bytes = byteLengthOf(tensor.dtype, elementCount(tensor.shape));
  if (tensor.data.byteLength !== bytes)
    throw new NpucError('RT011', {
      message: `input ${port.name}: ${tensor.data.byteLength} bytes for ${tensor.dtype}[${tensor.shape}], expected ${bytes}`,
    });
}

function toTensor({ dtype, shape }: WireTensor, bytes: Uint8Array): TensorData {
  const { array } = DTYPES[dtype];
  const width = array.prototype.BYTES_PER_ELEMENT as number;
  return { dtype, shape, data: new array(bytes.buffer, bytes.byteOffset, bytes.byteLength / width) };
}
