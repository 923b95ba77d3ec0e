import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { cacheFolder } from '../cache.ts';
import { NpucError } from '../errors.ts';
import { cannotWrite, downloadFile, type ExpectedFile, HttpRefusal, unreachable } from './download.ts';
import { isJsonObject, readJsonObject } from './json.ts';

/** A model on the hub: `hf:org/name`, `hf:org/name@revision`, `hf:org/name/file.gguf@revision`. */
export interface HubReference {
  /** `org/name`; a few old models have no org. */
  readonly repo: string;
  /** A branch, tag or commit. */
  readonly revision: string;
  /** The one weight file that is wanted, where the repository holds several. */
  readonly file: string | undefined;
}

export interface HubOptions {
  /** Bytes of all wanted files that are here, and what is being fetched. */
  readonly progress?: (doneBytes: number, totalBytes: number, file: string) => void;
  readonly signal?: AbortSignal;
  /** Waits between retries, see TransferOptions. */
  readonly retryMs?: number;
  readonly idleMs?: number;
}

interface HubFile extends ExpectedFile {
  readonly path: string;
}

const DEFAULT_ENDPOINT = 'https://huggingface.co';
const COMMIT = /^[0-9a-f]{40}$/;
const SIDE_FILES = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
];

export function isHubReference(source: string): boolean {
  return source.startsWith('hf:');
}

/** @throws HB001 the name is malformed */
export function parseHubReference(source: string): HubReference {
  const part = '[A-Za-z0-9][\\w.-]*';
  const match = new RegExp(`^hf:((?:${part}/)?${part}?)(?:/(${part}\\.gguf))?(?:@([\\w./-]+))?$`).exec(source);
  const [, repo = '', file, revision = 'main'] = match ?? [];
  if (!match || repo === '' || repo.endsWith('/') || source.includes('..')) {
    throw new NpucError('HB001', {
      message: `${source} does not name a model on the hub`,
      hint: 'write hf:org/name, hf:org/name@revision or hf:org/name/file.gguf',
    });
  }
  return { repo, revision, file };
}

/**
 * Puts the files of a hub model that a compile needs into npuc's cache and returns their folder, or the .gguf in it. Only a
 * complete and verified folder is ever seen under its final name; a broken download goes on where it stopped. A commit that
 * is there already is used without asking the network.
 *
 * HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
 * @throws HB001 malformed name, HB002 no such model, revision or file, HB003 access denied, HB004 hub not reachable,
 *   HB005 bytes that do not fit their digest, HB006 offline and not in the cache, HB007 another process is downloading it,
 *   IM110 / IM111 the repository holds no usable weights, IO002 the disk refuses the files
 */
export async function fetchHubModel(source: string, options: HubOptions = {}): Promise<string> {
  const reference = parseHubReference(source);
  const home = cacheFolder('hub', reference.repo.replace('/', '--'));
  const wanted = reference.file ?? 'model';
  const snapshot = (commit: string): string => join(home, 'snapshots', commit, wanted);
  const found = (commit: string): string =>
    reference.file ? join(snapshot(commit), reference.file) : snapshot(commit);
  const ref = join(home, 'refs', encodeURIComponent(reference.revision));

  if (COMMIT.test(reference.revision) && existsSync(snapshot(reference.revision))) return found(reference.revision);
  if (isOffline()) {
    const commit = existsSync(ref) ? readFileSync(ref, 'utf8') : '';
    if (COMMIT.test(commit) && existsSync(snapshot(commit))) return found(commit);
    throw new NpucError('HB006', {
      message: `${source} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub`,
      hint: 'run once without HF_HUB_OFFLINE',
    });
  }

  const hub = new Hub(reference, source, options);
  const commit = await hub.commit();
  if (!existsSync(snapshot(commit))) {
    const incoming = join(home, 'incoming', `${commit}-${wanted}`);
    const unlock = lock(join(home, 'incoming'), `${commit}-${wanted}.lock`, source);
    try {
      writing(incoming, () => mkdirSync(incoming, { recursive: true }));
      await hub.download(commit, incoming);
      writing(snapshot(commit), () => {
        mkdirSync(dirname(snapshot(commit)), { recursive: true });
        renameSync(incoming, snapshot(commit));
      });
    } finally {
      unlock();
    }
  }
  writing(ref, () => {
    mkdirSync(join(home, 'refs'), { recursive: true });
    writeFileSync(ref, commit);
  });
  return found(commit);
}

/** One model on the hub at one endpoint. */
class Hub {
  readonly #reference: HubReference;
  readonly #source: string;
  readonly #options: HubOptions;
  readonly #endpoint: string;
  /** The reason that the hub gave with its last refusal. */
  #serverCode: string | undefined;

  constructor(reference: HubReference, source: string, options: HubOptions) {
    this.#reference = reference;
    this.#source = source;
    this.#options = options;
    this.#endpoint = (process.env.HF_ENDPOINT || DEFAULT_ENDPOINT).replace(/\/+$/, '');
    if (!URL.canParse(this.#endpoint)) {
      throw new NpucError('HB004', { message: `HF_ENDPOINT is not a URL: ${this.#endpoint}` });
    }
  }

  /** The token goes along only to the hub itself: fetch drops the header when a redirect leads to another origin. */
  readonly #fetch: typeof fetch = async (input, init) => {
    const headers = new Headers(init?.headers);
    const token = process.env.HF_TOKEN;
    if (token) headers.set('authorization', `Bearer ${token}`);
    const response = await fetch(input, { ...init, headers, signal: init?.signal ?? this.#options.signal });
    this.#serverCode = response.headers.get('x-error-code') ?? undefined;
    return response;
  };

  /** The commit that the revision names today. */
  async commit(): Promise<string> {
    const { repo, revision } = this.#reference;
    const info = await this.#ask(async ({ modelInfo }) => {
      const about = { name: repo, revision, hubUrl: this.#endpoint, fetch: this.#fetch };
      return modelInfo({ ...about, additionalFields: ['sha'] }) as Promise<{ sha?: unknown }>;
    });
    if (typeof info.sha !== 'string' || !COMMIT.test(info.sha)) {
      throw new NpucError('HB004', { message: 'the hub names no commit', where: this.#endpoint });
    }
    return info.sha;
  }

  async download(commit: string, folder: string): Promise<void> {
    const files = await this.#list(commit);
    const first = chooseFiles(files, this.#reference);
    // The index says which shards there are; a repository may hold others.
    const index = first.find(({ path }) => path.endsWith('.index.json'));
    if (index) await this.#fetchFiles(commit, folder, [index]);
    const shards = index ? shardsOf(join(folder, index.path), files, this.#source) : [];
    await this.#fetchFiles(commit, folder, [...first, ...shards], this.#options.progress);
  }

  async #list(commit: string): Promise<HubFile[]> {
    return this.#ask(async ({ listFiles }) => {
      const files: HubFile[] = [];
      const params = { repo: this.#reference.repo, revision: commit, hubUrl: this.#endpoint, fetch: this.#fetch };
      for await (const entry of listFiles(params) as AsyncIterable<ListedFile>) {
        if (entry.type !== 'file' || typeof entry.path !== 'string' || !Number.isSafeInteger(entry.size)) continue;
        const { path, oid, lfs } = entry;
        const size = lfs ? lfs.size : entry.size;
        const digest = lfs ? { kind: 'sha256' as const, hex: lfs.oid } : { kind: 'sha1' as const, hex: oid };
        if (!/^[0-9a-f]{40,64}$/.test(digest.hex)) throw new Error(`it lists ${path} without a digest`);
        files.push({ path, size, digest });
      }
      return files;
    });
  }

  async #fetchFiles(
    commit: string,
    folder: string,
    files: readonly HubFile[],
    progress?: HubOptions['progress'],
  ): Promise<void> {
    const { signal, retryMs, idleMs } = this.#options;
    const total = files.reduce((sum, { size }) => sum + size, 0);
    let before = 0;
    for (const file of files) {
      const target = join(folder, file.path);
      const url = `${this.#endpoint}/${this.#reference.repo}/resolve/${commit}/${encodeURIComponent(file.path)}`;
      const report = (done: number): void => progress?.(before + done, total, file.path);
      if (!existsSync(target)) {
        try {
          await downloadFile(url, target, file, { fetch: this.#fetch, progress: report, signal, retryMs, idleMs });
        } catch (error) {
          throw error instanceof HttpRefusal ? this.#refused(error.status, error.serverCode, file.path, error) : error;
        }
      }
      report(file.size);
      before += file.size;
    }
  }

  /** Runs a question to the hub's API and gives its refusals their codes. */
  async #ask<T>(question: (hub: HubLibrary) => Promise<T>): Promise<T> {
    this.#options.signal?.throwIfAborted();
    try {
      // Imported here: few commands need it, and it takes a tenth of a second.
      return await question((await import('@huggingface/hub')) as unknown as HubLibrary);
    } catch (error) {
      this.#options.signal?.throwIfAborted();
      const status = (error as { statusCode?: unknown }).statusCode;
      if (typeof status === 'number') throw this.#refused(status, this.#serverCode, undefined, error);
      throw unreachable(this.#endpoint, error);
    }
  }

  #refused(status: number, serverCode: string | undefined, file: string | undefined, cause: unknown): NpucError {
    const { repo, revision } = this.#reference;
    const where = this.#endpoint;
    const hasToken = Boolean(process.env.HF_TOKEN);
    if (status === 404) {
      const what = file ? `no file ${file}` : serverCode === 'RevisionNotFound' ? `no revision ${revision}` : undefined;
      return new NpucError('HB002', {
        message: what ? `${repo} has ${what}` : `there is no model ${repo} (or no revision ${revision})`,
        where,
        cause,
      });
    }
    if (status === 401 || status === 403) {
      // The hub says 401 both for a private model and for one that is not there, so that nobody can tell them apart.
      const gated = serverCode === 'GatedRepo' || status === 403;
      return new NpucError('HB003', {
        message: gated
          ? `${repo} is only for those who accepted its terms`
          : `${repo} is private, or there is no such model`,
        where,
        hint: hasToken
          ? "HF_TOKEN is set, but does not grant access: accept the terms on the model's page, or take another token"
          : 'set HF_TOKEN to a token that may read it',
        cause,
      });
    }
    return new NpucError('HB004', { message: `the hub answered ${status}`, where, hint: 'try again later', cause });
  }
}

/** What is used of @huggingface/hub (its type declarations do not resolve under nodenext). */
interface HubLibrary {
  modelInfo(params: object): Promise<unknown>;
  listFiles(params: object): AsyncIterable<unknown>;
}

interface ListedFile {
  readonly type: string;
  readonly path: string;
  readonly size: number;
  readonly oid: string;
  readonly lfs?: { readonly oid: string; readonly size: number };
}

/** The side files and the weights (the index where they are sharded) of a repository's top folder. */
function chooseFiles(files: readonly HubFile[], { repo, file }: HubReference): HubFile[] {
  const byName = new Map(files.filter(({ path }) => /^[\w.-]+$/.test(path)).map((entry) => [entry.path, entry]));
  const names = [...byName.keys()];
  const list = (suffix: string): string[] => names.filter((name) => name.endsWith(suffix));
  if (file) {
    const entry = byName.get(file);
    if (entry) return [entry];
    throw new NpucError('HB002', {
      message: `${repo} has no file ${file}`,
      hint: list('.gguf').length ? `it has ${list('.gguf').join(', ')}` : undefined,
    });
  }
  const weights =
    byName.get('model.safetensors.index.json') ??
    byName.get('model.safetensors') ??
    onlyEntry(list('.safetensors.index.json'), byName) ??
    onlyEntry(list('.safetensors'), byName);
  if (!weights) throw noWeights(repo, names);
  const side = SIDE_FILES.flatMap((name) => byName.get(name) ?? []);
  if (!byName.has('config.json')) {
    throw new NpucError('IM110', { message: `${repo} has no config.json`, hint: 'is it a language model?' });
  }
  return [...side, weights];
}

function onlyEntry(names: readonly string[], byName: ReadonlyMap<string, HubFile>): HubFile | undefined {
  return names.length === 1 ? byName.get(names[0]) : undefined;
}

function noWeights(repo: string, names: readonly string[]): NpucError {
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (ggufs.length > 0) {
    return new NpucError('IM110', {
      message: `${repo} holds GGUF files; one must be named`,
      hint: `write hf:${repo}/${ggufs[0]} (${ggufs.join(', ')})`,
    });
  }
  const pickled = names.find((name) => /\.(bin|pt|pth|ckpt)$/.test(name));
  if (pickled) {
    return new NpucError('IM111', {
      message: `${repo} has only pickled weights (${pickled}), which can run any code when they are loaded`,
      hint: 'the hub offers a conversion to safetensors as a pull request: hf:org/name@refs/pr/<number>',
    });
  }
  const several = names.filter((name) => name.endsWith('.safetensors'));
  return new NpucError('IM110', {
    message: `${repo} has no weights that can be told apart`,
    hint: several.length > 0 ? `it has ${several.slice(0, 5).join(', ')}` : 'no .safetensors is in its top folder',
  });
}

function shardsOf(index: string, files: readonly HubFile[], source: string): HubFile[] {
  const { weight_map: map } = readJsonObject(index);
  const names = new Set(isJsonObject(map) ? Object.values(map) : []);
  return [...names].map((name) => {
    const file = files.find(({ path }) => path === name);
    if (!file || !/^[\w.-]+\.safetensors$/.test(file.path)) {
      throw new NpucError('IM103', {
        message: `the index names ${JSON.stringify(name)}, which is not there`,
        where: source,
      });
    }
    return file;
  });
}

function isOffline(): boolean {
  return /^(1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? '');
}

/** Two processes must not write into the same unfinished files. */
function lock(folder: string, name: string, source: string): () => void {
  writing(folder, () => mkdirSync(folder, { recursive: true }));
  const path = join(folder, name);
  for (let attempt = 0; ; attempt++) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' });
      return () => rmSync(path, { force: true });
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cannotWrite(path, cause);
      const holder = Number(existsSync(path) ? readFileSync(path, 'utf8') : 0);
      if (attempt > 0 || isAlive(holder)) {
        throw new NpucError('HB007', {
          message: `process ${holder} is downloading ${source}`,
          hint: `wait for it; if there is no such process, remove ${path}`,
        });
      }
      rmSync(path, { force: true });
    }
  }
}

function isAlive(pid: number): boolean {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // A process of another user cannot be signalled, but is there.
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function writing(path: string, work: () => void): void {
  try {
    work();
  } catch (cause) {
    throw cannotWrite(path, cause);
  }
}
