/**
 * The LiteRT-LM child: loads liblitert-lm by FFI, opens one bundle and asks it, then ends. A bundle that the runtime cannot
 * take may end it in a signal, so it never runs in the tool's own process; a crash here is the parent's coded error.
 * Arguments: library, parent's process id. One request comes on descriptor 3, one answer goes back.
 */
import koffi from 'koffi';
import type { LitertLmAnswer, LitertLmRequest } from './litert-lm.ts';
import { dieWithParent, type Pointer } from './native-api.ts';
import { receiveRequest, sendAnswer } from './native-frames.ts';

const CHANNEL = 3;
/** InputDataType, SamplerType and severity of the C interface. */
const TEXT = 0;
const TOP_P = 2;
const WARNING = 3;
/** In the place of a cache folder: packed weights are not written beside the bundle. */
const NO_CACHE = ':nocache';

type NativeFunction = (...values: unknown[]) => unknown;

const ptr = 'void *';

const [library = '', parent = '0'] = process.argv.slice(2);
dieWithParent(Number(parent));
const request = receiveRequest(CHANNEL) as unknown as LitertLmRequest | undefined;
if (request) {
  try {
    sendAnswer(CHANNEL, { result: ask(request) });
  } catch (error) {
    sendAnswer(CHANNEL, { error: (error as Error).message });
  }
}
// Exit handlers of a runtime with threads are not worth waiting for; everything is written by now.
process.kill(process.pid, 'SIGKILL');

function ask({ bundle, threads, texts, queries, chats }: LitertLmRequest): LitertLmAnswer {
  const loaded = koffi.load(library);
  const bind = (name: string, result: string, parameters: readonly unknown[]): NativeFunction =>
    loaded.func(`litert_lm_${name}`, result, parameters as unknown as string[]);
  const make = (name: string, parameters: readonly unknown[]): ((...values: unknown[]) => Pointer) => {
    const native = bind(name, ptr, parameters);
    return (...values) => {
      const made = native(...values) as Pointer | null;
      if (made === null) throw new Error(`fails in ${name}`);
      return made;
    };
  };
  bind('set_min_log_level', 'void', ['int'])(WARNING);
  const settings = make('engine_settings_create', ['str', 'str', 'str', 'str'])(bundle, 'cpu', null, null);
  bind('engine_settings_set_num_threads', 'void', [ptr, 'int'])(settings, threads);
  bind('engine_settings_set_cache_dir', 'void', [ptr, 'str'])(settings, NO_CACHE);
  const engine = make('engine_create', [ptr])(settings);

  const tokenize = make('engine_tokenize', [ptr, 'str']);
  const tokens = bind('tokenize_result_get_tokens', ptr, [ptr]);
  const count = bind('tokenize_result_get_num_tokens', 'size_t', [ptr]);
  const ids = texts.map((text) => {
    const result = tokenize(engine, text);
    const length = Number(count(result));
    if (length === 0) return [];
    return koffi.decode(tokens(result) as Pointer, koffi.array('int32_t', length, 'Array')) as number[];
  });

  const createSession = make('engine_create_session', [ptr, ptr]);
  const deleteSession = bind('session_delete', 'void', [ptr]);
  const inputOf = make('input_data_create', ['int', ptr, 'size_t']);
  const prefill = bind('session_run_prefill', 'int', [ptr, koffi.pointer(ptr), 'size_t']);
  const decode = make('session_run_decode', [ptr]);
  const textAt = bind('responses_get_response_text_at', 'str', [ptr, 'int']);
  const answers = queries.map(({ prompt, maxTokens }) => {
    const session = createSession(engine, greedyConfig(make, bind, maxTokens));
    const bytes = Buffer.from(prompt, 'utf8');
    const status = Number(prefill(session, [inputOf(TEXT, bytes, bytes.length)], 1));
    if (status !== 0) throw new Error(`fails in the prefill of ${JSON.stringify(prompt)} (status ${status})`);
    const text = textAt(decode(session), 0) as string | null;
    deleteSession(session);
    return text ?? '';
  });

  const createChat = make('conversation_create', [ptr, ptr]);
  const render = bind('conversation_render_message_to_string', 'str', [ptr, 'str']);
  const rendered = chats.map((message) => {
    const chat = createChat(engine, make('conversation_config_create', [])());
    const text = render(chat, JSON.stringify(message)) as string | null;
    if (text === null) throw new Error(`cannot render ${JSON.stringify(message)} with the prompt template`);
    return text;
  });
  return { ids, answers, rendered };
}

type Make = (name: string, parameters: readonly unknown[]) => (...values: unknown[]) => Pointer;

/** The best token each time, the prompt as it is. */
function greedyConfig(
  make: Make,
  bind: (name: string, result: string, parameters: readonly unknown[]) => NativeFunction,
  maxTokens: number,
): Pointer {
  const config = make('session_config_create', [])();
  const sampler = make('sampler_params_create', ['int'])(TOP_P);
  bind('sampler_params_set_top_k', 'void', [ptr, 'int'])(sampler, 1);
  bind('sampler_params_set_top_p', 'void', [ptr, 'float'])(sampler, 1);
  bind('sampler_params_set_temperature', 'void', [ptr, 'float'])(sampler, 1);
  bind('session_config_set_sampler_params', 'void', [ptr, ptr])(config, sampler);
  bind('session_config_set_max_output_tokens', 'void', [ptr, 'int'])(config, maxTokens);
  bind('session_config_set_apply_prompt_template', 'void', [ptr, 'bool'])(config, false);
  return config;
}
