import type { GenieManifest } from './genie-bundle.ts';

/** `README.md` of a bundle: what it is and the adb commands. File names of the SDK: the vendor's public documentation. */
export function renderGenieReadme(bundle: Omit<GenieManifest, 'files'>, files: readonly string[]): string {
  const { soc, source, graphs } = bundle;
  const distinct = (numbers: readonly number[]): string => [...new Set(numbers)].join(' and ');
  const parts = graphs[0]!.parts.length;
  const cut =
    parts === 1
      ? ''
      : `Each graph is cut into ${parts} parts, which Genie runs in the order of their names (p1of${parts} first).\n`;
  const version = soc.arch.replace('v', 'V');
  const place = '/data/local/tmp/genie';
  const template = files.includes('prompt_template.txt')
    ? '\nThe model was trained on conversations: put the text in the place of `{prompt}` in `prompt_template.txt`.\n'
    : '';
  const unshared = bundle.shared
    ? ''
    : '\nEach graph has a binary of its own, so the weights are on the phone once per graph.\n';
  return `# ${source.name} for Genie on ${soc.name}

${graphs.length} graphs of ${distinct(graphs.map(({ tokens }) => tokens))} new tokens, ${distinct(graphs.map(({ cache }) => cache))} tokens of context, HTP ${soc.arch} (soc ${soc.number}).
${cut}Made by npuc ${bundle.npuc} with QAIRT ${bundle.toolchain.qairt ?? 'of an unknown version'}: the libraries on the phone must
be of this version or newer.
${unshared}
## Run

QAIRT is the folder of the vendor's SDK.

    adb shell mkdir -p ${place}
    adb push ${files.join(' ')} ${place}
    adb push $QAIRT/bin/aarch64-android/genie-t2t-run ${place}
    for lib in Genie QnnHtp QnnSystem QnnHtpNetRunExtensions QnnHtp${version}Stub; do
      adb push $QAIRT/lib/aarch64-android/lib$lib.so ${place}
    done
    adb push $QAIRT/lib/hexagon-${soc.arch}/unsigned/libQnnHtp${version}Skel.so ${place}
    adb shell "cd ${place} && chmod +x genie-t2t-run && LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=. \\
      ./genie-t2t-run -c genie_config.json -p 'Once upon a time'"
${template}
Paths in \`genie_config.json\` are relative to the folder that the command runs in. \`npuc bundle check\` says whether
an edited bundle still fits its graphs: Genie itself does not notice most of what can be wrong.
`;
}
