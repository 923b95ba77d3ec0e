import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** What the next request for a file meets; one fault a request, in order. */
export type Fault =
  | { kind: 'status'; status: number; code?: string }
  /** Sends only so many bytes of the body and ends it: by a broken connection, or as if it were all. */
  | { kind: 'cut'; after: number; how: 'connection' | 'chunked' }
  | { kind: 'stall'; after: number }
  | { kind: 'corrupt' }
  | { kind: 'longer' }
  /** Sends the whole file, whatever range was asked for. */
  | { kind: 'no-range' };

export interface Repository {
  /** By branch, tag or commit. */
  revisions: Record<string, string>;
  files: Record<string, Uint8Array>;
  /** Names that lie in LFS: their bytes come from the other server. */
  lfs?: readonly string[];
  /** Needs this token. */
  token?: string;
  gated?: boolean;
}

export interface Request {
  readonly server: 'hub' | 'cdn';
  readonly path: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
}

/** Two servers that speak what is needed of the hub's API: the hub and the place where LFS files lie. */
export class HubServer {
  readonly repositories = new Map<string, Repository>();
  readonly faults = new Map<string, Fault[]>();
  readonly requests: Request[] = [];
  /** Answers every API question with this. */
  apiStatus: number | undefined;
  apiBody: string | undefined;
  treePageSize = 3;
  readonly #hub: Server = createServer((request, response) => this.#answer('hub', request, response));
  readonly #cdn: Server = createServer((request, response) => this.#answer('cdn', request, response));
  url = '';
  #cdnUrl = '';

  async start(): Promise<void> {
    const listen = (server: Server) =>
      new Promise<string>((resolve) =>
        server.listen(0, '127.0.0.1', () => resolve(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)),
      );
    this.url = await listen(this.#hub);
    this.#cdnUrl = await listen(this.#cdn);
  }

  async stop(): Promise<void> {
    for (const server of [this.#hub, this.#cdn]) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  #answer(server: 'hub' | 'cdn', request: IncomingMessage, response: ServerResponse): unknown {
    const url = new URL(request.url!, this.url);
    const { range, authorization } = request.headers;
    this.requests.push({ server, path: url.pathname, range, authorization });
    if (server === 'cdn') {
      const [, repo, file] = /^\/lfs\/(.+)\/([^/]+)$/.exec(url.pathname)!;
      return this.#sendFile(repo, decodeURIComponent(file), range, response);
    }
    const api = /^\/api\/models\/(.+?)\/(revision|tree)\/([^/]+)$/.exec(url.pathname);
    const resolve = /^\/(.+?)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname);
    const repo = api?.[1] ?? resolve?.[1] ?? '';
    const found = this.repositories.get(repo);
    if (api && this.apiStatus) return refuse(response, this.apiStatus);
    if (api && this.apiBody !== undefined) return response.end(this.apiBody);
    if (!found) return refuse(response, authorization ? 404 : 401, 'RepoNotFound');
    if (found.token && authorization !== `Bearer ${found.token}`) return refuse(response, 401, 'RepoNotFound');
    const commit = commitOf(found, decodeURIComponent(api?.[3] ?? resolve?.[2] ?? ''));
    if (!commit) return refuse(response, 404, 'RevisionNotFound');
    if (api?.[2] === 'revision') {
      const siblings = Object.keys(found.files).map((rfilename) => ({ rfilename }));
      return json(response, { _id: '1', id: repo, sha: commit, lastModified: '2026-01-01T00:00:00.000Z', siblings });
    }
    if (api) return this.#tree(found, url, response);
    if (found.gated) return refuse(response, 403, 'GatedRepo');
    const file = decodeURIComponent(resolve![3]);
    if (!found.files[file]) return refuse(response, 404, 'EntryNotFound');
    if (found.lfs?.includes(file)) {
      const location = `${this.#cdnUrl}/lfs/${repo}/${encodeURIComponent(file)}`;
      return response.writeHead(302, { location }).end();
    }
    return this.#sendFile(repo, file, range, response);
  }

  #tree(repository: Repository, url: URL, response: ServerResponse): void {
    const entries = Object.entries(repository.files).map(([path, bytes]) => {
      const sha256 = createHash('sha256').update(bytes).digest('hex');
      const pointer = Buffer.from(
        `version https://git-lfs.github.com/spec/v1\noid sha256:${sha256}\nsize ${bytes.length}\n`,
      );
      const isLfs = repository.lfs?.includes(path);
      const lfs = isLfs ? { lfs: { oid: sha256, size: bytes.length, pointerSize: pointer.length } } : {};
      return { type: 'file', path, size: bytes.length, oid: gitOid(isLfs ? pointer : bytes), ...lfs };
    });
    const all = [{ type: 'directory', path: 'onnx', size: 0, oid: gitOid(new Uint8Array(0)) }, ...entries];
    const from = Number(url.searchParams.get('cursor') ?? 0);
    const to = from + this.treePageSize;
    if (to < all.length) {
      url.searchParams.set('cursor', String(to));
      response.setHeader('link', `<${url}>; rel="next"`);
    }
    json(response, all.slice(from, to));
  }

  #sendFile(repo: string, file: string, range: string | undefined, response: ServerResponse): unknown {
    const fault = this.faults.get(file)?.shift();
    if (fault?.kind === 'status') return refuse(response, fault.status, fault.code);
    let bytes = Buffer.from(this.repositories.get(repo)!.files[file]);
    const size = bytes.length;
    const from = range && fault?.kind !== 'no-range' ? Number(/^bytes=(\d+)-$/.exec(range)![1]) : 0;
    if (range && from >= size) return refuse(response, 416);
    bytes = bytes.subarray(from);
    if (fault?.kind === 'corrupt') bytes = Buffer.from(bytes.map((byte) => byte ^ 1));
    if (fault?.kind === 'longer') bytes = Buffer.concat([bytes, Buffer.from('more')]);
    if (from > 0) response.setHeader('content-range', `bytes ${from}-${size - 1}/${size}`);
    const chunked = fault?.kind === 'cut' && fault.how === 'chunked';
    if (!chunked) response.setHeader('content-length', bytes.length);
    response.writeHead(from > 0 ? 206 : 200);
    if (fault?.kind === 'cut') {
      const sent = bytes.subarray(0, fault.after);
      if (chunked) return response.end(sent);
      return response.write(sent, () => setTimeout(() => response.destroy(), 20));
    }
    return fault?.kind === 'stall' ? response.write(bytes.subarray(0, fault.after)) : response.end(bytes);
  }
}

export function gitOid(bytes: Uint8Array): string {
  return createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
}

function commitOf(repository: Repository, revision: string): string | undefined {
  return repository.revisions[revision] ?? Object.values(repository.revisions).find((commit) => commit === revision);
}

function json(response: ServerResponse, value: unknown): void {
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(value));
}

function refuse(response: ServerResponse, status: number, code?: string): void {
  if (code) response.setHeader('x-error-code', code);
  response.setHeader('content-type', 'application/json');
  response.writeHead(status).end(JSON.stringify({ error: `status ${status}` }));
}
