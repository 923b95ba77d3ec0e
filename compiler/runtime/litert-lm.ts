import { resolve } from 'node:path';
import { NpucError } from '../errors.ts';
import { type Answer, FrameReader, sendFrame } from './native-frames.ts';
import { readLog, spawnChild } from './native-process.ts';

/** What the child is asked, about one bundle. */
export interface LitertLmRequest {
  readonly bundle: string;
  readonly threads: number;
  /** To encode, as the tokenizer does it alone. */
  readonly texts: readonly string[];
  /** To go on from, greedily, each in a session of its own; the runtime puts the bundle's start token before a prompt. */
  readonly queries: readonly { readonly prompt: string; readonly maxTokens: number }[];
  /** Messages to put into the bundle's prompt template, each the first of a conversation. */
  readonly chats: readonly { readonly role: string; readonly content: string }[];
}

export interface LitertLmAnswer {
  readonly ids: readonly (readonly number[])[];
  readonly answers: readonly string[];
  readonly rendered: readonly string[];
}

/**
 * Runs the real LiteRT-LM on the CPU in a child process.
 * @param library liblitert-lm
 * @param where what messages call the bundle
 * @throws TF403 when it refuses the bundle or a question, with its own error lines; RT202 when it crashes
 */
export async function runLitertLm(
  library: string,
  bundle: string,
  request: Partial<Omit<LitertLmRequest, 'bundle'>>,
  where: string = bundle,
): Promise<LitertLmAnswer> {
  const { child, socket, folder, exited } = spawnChild([library], '', undefined, 'litert-lm-host');
  try {
    return await new Promise<LitertLmAnswer>((done, fail) => {
      const reader = new FrameReader<Answer>((answer) => {
        if (answer.error === undefined) return done(answer.result as LitertLmAnswer);
        const lines = errorLines(folder);
        fail(
          new NpucError('TF403', {
            message: [`LiteRT-LM ${answer.error}`, ...lines].join('\n'),
            where,
            hint: 'npuc bundle check says what is wrong with a bundle',
          }),
        );
      });
      socket.on('data', (chunk: Uint8Array) => reader.push(chunk));
      // A broken pipe is seen as the child's exit as well, which says more.
      socket.on('error', () => {});
      child.once('error', (cause) => {
        fail(new NpucError('RT201', { message: `LiteRT-LM's process cannot be started: ${cause.message}`, cause }));
      });
      // `close` comes after the last bytes of the socket; after an answer the rejection has no effect.
      child.once('close', (code, ended) => {
        const how = ended ? `was ended by ${ended}` : `ended with exit code ${code}`;
        fail(
          new NpucError('RT202', {
            message: [`LiteRT-LM's process ${how}`, ...errorLines(folder)].join('\n'),
            where,
            hint: 'npuc bundle check says what is wrong with a bundle',
          }),
        );
      });
      sendFrame(socket, { threads: 1, texts: [], queries: [], chats: [], ...request, bundle: resolve(bundle) });
    });
  } finally {
    socket.destroy();
    await exited;
  }
}

/** Lines of the runtime's log that speak of errors, without time and place. */
function errorLines(folder: string): string[] {
  const lines = readLog(folder)
    .split('\n')
    .filter((line) => /^[EF]\d{4} |ERROR|FATAL|INTERNAL:|INVALID_ARGUMENT|NOT_FOUND|FAILED_PRECONDITION/.test(line))
    .map((line) => line.replace(/^[EF]\d{4}\s+\S+\s+\d+\s+\S+\]\s*/, '').trim());
  return [...new Set(lines)].slice(-5).map((line) => `  ${line}`);
}
