// Builds the console's assets into the package and records what they were built from.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync, copyFileSync } from "node:fs";
import { build } from "esbuild";

const target = new URL("../src/evenflow/serving/server/console/assets/", import.meta.url).pathname;
const here = new URL(".", import.meta.url).pathname;
process.chdir(here);
await build({
  entryPoints: { console: "src/main.ts" },
  bundle: true, minify: true, format: "esm", target: "es2022", outdir: target, legalComments: "inline",
  banner: { js: "/* With uPlot 1.6.32, (c) 2022 Leon Sorokin, MIT licence. */" },
});
copyFileSync("src/console.html", target + "console.html");
const sources = [...readdirSync("src").map((name) => "src/" + name), "package-lock.json"].sort();
const hash = createHash("sha256");
for (const name of sources) hash.update(name + "\0").update(readFileSync(name)).update("\0");
writeFileSync(target + "sources.sha256", hash.digest("hex") + "\n");
