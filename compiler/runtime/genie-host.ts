/**
 * The Genie child: loads libGenie by FFI, creates one dialog and asks it, then ends. Missing tensors and shared binaries
 * end libGenie in a segmentation fault, so it never runs in the tool's own process; a crash here is the parent's coded error.
 * Arguments: QNN library folder, bundle folder, parent's process id. One request comes on descriptor 3, one answer goes back.
 */
import { join } from 'node:path';
import koffi from 'koffi';
import type { GenieAnswer, GenieRequest } from './genie.ts';
import { dieWithParent, type Pointer, viewMemory } from './native-api.ts';
import { receiveRequest, sendAnswer } from './native-frames.ts';

const CHANNEL = 3;
/** GenieDialog_SentenceCode_t: the whole prompt at once. */
const SENTENCE_COMPLETE = 0;
/** Genie_Status_t: the context is full, the text so far is whole. */
const CONTEXT_EXCEEDED = 4;
const STATUS: Readonly<Record<number, string>> = {
  [-1]: 'general failure',
  [-4]: 'invalid configuration',
  [-6]: 'query failed',
  [-7]: 'malformed JSON',
  [-8]: 'not of the schema',
  [-9]: 'invalid value',
  1: 'aborted',
};

type NativeFunction = (...values: unknown[]) => unknown;

const ptr = 'void *';
const outPtr: unknown = koffi.out(koffi.pointer(ptr));

const [libraries = '', bundle = '', parent = '0'] = process.argv.slice(2);
dieWithParent(Number(parent));
const request = receiveRequest(CHANNEL) as unknown as GenieRequest | undefined;
if (request) {
  try {
    // Paths in the configuration are relative to the bundle.
    process.chdir(bundle);
    sendAnswer(CHANNEL, { result: ask(request) });
  } catch (error) {
    sendAnswer(CHANNEL, { error: (error as Error).message });
  }
}
// The vendor's exit handlers are known to crash; everything is written by now.
process.kill(process.pid, 'SIGKILL');

function ask({ config, queries }: GenieRequest): GenieAnswer[] {
  const library = koffi.load(join(libraries, 'libGenie.so'), { global: true });
  const bind = (name: string, parameters: readonly unknown[]): NativeFunction =>
    library.func(name, 'int32_t', parameters as unknown as string[]);
  const createConfig = bind('GenieDialogConfig_createFromJson', ['str', outPtr]);
  const createDialog = bind('GenieDialog_create', [ptr, outPtr]);
  const reset = bind('GenieDialog_reset', [ptr]);
  const limit = bind('GenieDialog_setMaxNumTokens', [ptr, 'uint32_t']);
  const onText = koffi.pointer(koffi.proto('void GenieText(void *text, int code, void *data)'));
  const onTokens = koffi.pointer(koffi.proto('void GenieTokens(void *ids, uint32_t count, int code, void *data)'));
  const queryText = bind('GenieDialog_query', [ptr, 'str', 'int', onText, ptr]);
  const queryTokens = bind('GenieDialog_tokenQuery', [ptr, ptr, 'uint32_t', 'int', onTokens, ptr]);

  const lengthOf = koffi.load(null).func('strlen', 'size_t', [ptr]);

  const made: [Pointer | null] = [null];
  check('refuses the configuration', createConfig(config, made));
  const dialog: [Pointer | null] = [null];
  check('cannot create the dialog', createDialog(made[0], dialog));
  return queries.map((query, index) => {
    if (index > 0) check('cannot reset the dialog', reset(dialog[0]));
    check('refuses the limit', limit(dialog[0], query.maxTokens));
    if ('ids' in query) {
      const ids: number[] = [];
      const callback = koffi.register((list: Pointer | null, count: number) => {
        if (list && count > 0) ids.push(...(koffi.decode(list, koffi.array('uint32_t', count, 'Array')) as number[]));
      }, onTokens);
      const prompt = Uint32Array.from(query.ids);
      const status = Number(queryTokens(dialog[0], prompt, prompt.length, SENTENCE_COMPLETE, callback, null));
      koffi.unregister(callback);
      if (status !== CONTEXT_EXCEEDED) check('fails on token ids', status);
      return { ids };
    }
    // A piece can end within a character: bytes are joined first.
    const pieces: Buffer[] = [];
    const callback = koffi.register((text: Pointer | null) => {
      if (text) pieces.push(Buffer.from(viewMemory(text, Number(lengthOf(text)))));
    }, onText);
    const status = Number(queryText(dialog[0], query.prompt, SENTENCE_COMPLETE, callback, null));
    koffi.unregister(callback);
    if (status !== CONTEXT_EXCEEDED) check('fails on a prompt', status);
    return { text: Buffer.concat(pieces).toString('utf8') };
  });
}

/** @throws Error for a Genie_Status_t below zero, or a warning that nobody expects */
function check(what: string, status: unknown): void {
  const code = Number(status);
  if (code !== 0) throw new Error(`${what} (status ${code}${STATUS[code] ? `, ${STATUS[code]}` : ''})`);
}
